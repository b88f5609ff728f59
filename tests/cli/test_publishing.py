"""The terminal, from a folder to the Hub: flags, one line where something is wrong, and never the token."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForImageClassification
from transformers.utils import logging

from hf_vitcompress import CompressionReport
from hf_vitcompress.evaluation import latency
from hf_vitcompress.evaluation.latency import LATENCY_BATCHES
from hf_vitcompress.publish import retries
from hf_vitcompress.report.card_file import Card
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.metrics import save_metric
from support.published import PUBLISHED, TELL_TALE, Made, card_of, contents
from support.terminal import Run, one_line, running_commands, without_bars  # noqa: F401  (the fixture "run")

# The model that these tests publish was never trained.
pytestmark = pytest.mark.filterwarnings("ignore:.*no better than guessing:hf_vitcompress.errors.DataWarning")

logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=lambda seconds: None))


# ---- push


def test_push_publishes_a_folder(hub: FakeHub, run: Run, folder: Path) -> None:
    done = run("push", folder, "me/x", "-q")
    assert done.code == 0, done.err
    assert hub.files("me/x").keys() == PUBLISHED
    head = hub.commits("me/x")[0].oid
    assert done.out == f"published: {hub.endpoint}/me/x/commit/{head}\n"
    again = run("push", folder, "me/x", "-q")
    assert (again.code, again.out) == (0, done.out)
    AutoModelForImageClassification.from_pretrained("me/x")


def test_every_flag_reaches_the_hub(hub: FakeHub, run: Run, folder: Path) -> None:
    hub.organizations["team"] = {"you"}
    flags = ["--private", "--revision", "small", "--token", hub.token(user="you"), "--max-shard-size", "20KB"]
    words = ["--commit-message", "Smaller", "--commit-description", "by half", "--tag", "digits", "--tag", "tiny"]
    done = run("push", folder, "team/x", *flags, *words, "-q")
    assert done.code == 0, done.err
    commit = hub.commits("team/x", "small")[0]
    assert (commit.title, commit.description, commit.author) == ("Smaller", "by half", "you")
    assert hub.repositories["team/x"].private
    assert hub.files("team/x") == {}
    assert "model.safetensors.index.json" in hub.files("team/x", "small")
    assert card_of(hub.files("team/x", "small")).metadata["tags"][-2:] == ["digits", "tiny"]


def test_a_pull_request_is_shown(hub: FakeHub, run: Run, folder: Path) -> None:
    hub.add_repo("you/x")
    done = run("push", folder, "you/x", "--create-pr", "-q")
    assert done.out == f"published: {hub.endpoint}/you/x/discussions/1\n"


FAILURES: dict[str, tuple[list[str], str]] = {
    "no checkpoint": (["{root}/nothing", "me/x"], "is no checkpoint"),
    "missing shard": (["{root}/sharded", "me/x"], "lacks model-00001-of-00003.safetensors"),
    "damaged": (["{root}/damaged", "me/x"], "is damaged"),
    "bad name": (["{root}/small", "me/x/y"], "is no name of a Hub repository"),
    "read-only token": (["{root}/small", "me/x", "--token", "{read_only}"], "may not write"),
    "unknown token": (["{root}/small", "me/x", "--token", "hf_unknownButSecret"], "does not know the token"),
    "broken token": (["{root}/small", "me/x", "--token", "hf_unknownButSecret\n"], "The token has spaces"),
    "foreign namespace": (["{root}/small", "nobody/x"], "may not write to 'nobody/x'"),
    "no such branch": (["{root}/small", "me/there", "--create-pr", "--revision", "none"], "no such revision"),
    "bad metadata": (["{root}/mistyped", "me/x"], "refuses the card"),
    "bad size": (["{root}/small", "me/x", "--max-shard-size", "five"], "cannot be published"),
}


def spoil(made: Made, root: Path) -> None:
    """Make one of the folders that `FAILURES` names."""
    match root.name:
        case "sharded":
            made.model.save_pretrained(root, max_shard_size="20KB")
            (root / "model-00001-of-00003.safetensors").unlink()
        case "damaged":
            made.model.save_pretrained(root)
            (root / "model.safetensors").write_bytes(b"{}")
        case "mistyped":
            made.model.save_pretrained(root)
            card = (root / "README.md").read_text()
            (root / "README.md").write_text(card.replace("license: mit", "license: mine"))


@pytest.mark.parametrize("what", FAILURES)
def test_what_is_wrong_is_one_line(hub: FakeHub, run: Run, made: Made, folder: Path, tmp_path: Path, what: str) -> None:
    hub.add_repo("me/there")
    arguments, words = FAILURES[what]
    spoil(made, tmp_path / Path(arguments[0]).name)
    before = contents(folder)
    read_only = hub.token(write=False)
    done = run("push", *(argument.format(root=tmp_path, read_only=read_only) for argument in arguments), "-q")
    assert done.code == 1
    assert done.out == ""
    assert words in one_line(without_bars(done.err))
    for secret in (hub.token(), read_only, "unknownButSecret"):
        assert secret not in done.err
    assert contents(folder) == before


def test_without_a_token_it_says_how_to_get_one(
    hub: FakeHub, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = run("push", folder, "me/x", "-q")
    assert done.code == 1
    assert "hf auth login" in one_line(done.err)
    assert hub.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 409, 412, 429, 500, 502, 503, None])
def test_a_hub_that_fails_is_told_in_the_last_line(hub: FakeHub, run: Run, folder: Path, status: int | None) -> None:
    if status is None:
        hub.cut("POST", "/commit/", times=99)
    else:
        hub.fail("POST", "/commit/", status, times=99)
    done = run("push", folder, "me/x", "-q")
    assert done.code == 1
    lines = done.err.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in done.err
    assert hub.token() not in done.err
    hub.faults.clear()
    assert run("push", folder, "me/x", "-q").code == 0
    assert hub.files("me/x").keys() == PUBLISHED


# ---- compress and evaluate, as far as cards are concerned


def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is measured, but three times only."""
    measure = latency.measure_latency

    def quick(dense: Any, small: Any, batch_size: int = 32, shape: Any = None) -> Any:
        assert tuple(shape) == (3, 16, 16)  # of the images that were given
        return measure(dense, small, batch_size, 3, shape)

    for module in ("latency", "comparison"):
        monkeypatch.setattr(f"hf_vitcompress.evaluation.{module}.measure_latency", quick)


def test_compress_judges_and_times_for_the_card(
    run: Run, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_latency(monkeypatch)
    recipe = ["--keep-ratio", 0.5, "--rank-multiple", 1, "--precision", "float32", "--measuring-images", 0]
    given = ["--data", made.images, "--test", made.images, "--latency", "--output", tmp_path / "out"]
    done = run("compress", made.dense, *given, *recipe, "-q")
    assert done.code == 0, done.err
    assert contents(tmp_path / "out").keys() == PUBLISHED
    report, card = CompressionReport.load(tmp_path / "out"), Card.load(tmp_path / "out" / "README.md")
    assert [one.batch_size for one in report.latency] == list(LATENCY_BATCHES)
    assert report.evaluation is not None
    assert report.evaluation.top1 is not None
    assert card.metadata["model-index"][0]["results"][0]["metrics"][0]["value"] == report.evaluation.top1.value
    for text in ("latency, batch 1", "latency, batch 32", "top-1, n=36", "agreement"):
        assert text in done.out
        assert text in card.text
    assert "Its speed was not measured" not in card.text
    assert TELL_TALE not in str(card)


@pytest.fixture
def unjudged(folder: Path) -> Path:
    """A compressed model that nothing is known about yet, with a person's words in its card."""
    report = CompressionReport.load(folder)
    report.evaluation, report.latency = None, []
    report.save(folder)
    card = folder / "README.md"
    card.write_text(f"---\nlicense: gpl-3.0\n---\n# My words\n\n{Card.load(card).text}\n")
    return folder


def test_evaluate_updates_report_and_card(
    hub: FakeHub, run: Run, made: Made, unjudged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_latency(monkeypatch)
    compared = ["--data", made.images, "--against", made.dense, "--latency", "--batch-size", 4]
    done = run("evaluate", unjudged, *compared, "--update-card", "--dataset", "uoft-cs/cifar10", "-q")
    assert done.code == 0, done.err
    report, card = CompressionReport.load(unjudged), Card.load(unjudged / "README.md")
    assert report.evaluation is not None
    assert report.evaluation.top1 is not None
    assert report.evaluation.dataset == "uoft-cs/cifar10"
    assert [one.batch_size for one in report.latency] == [1, 4]
    (result,) = card.metadata["model-index"][0]["results"]
    assert result["dataset"]["type"] == "uoft-cs/cifar10"
    assert result["metrics"][0]["value"] == report.evaluation.top1.value
    assert card.text.startswith("# My words")
    assert card.metadata["license"] == "gpl-3.0"
    assert "36 images of `uoft-cs/cifar10`" in card.text
    assert run("push", unjudged, "me/x", "-q").code == 0
    assert card_of(hub.files("me/x")).metadata["model-index"][0]["results"] == [result]


def test_a_metric_goes_into_table_report_and_card(run: Run, made: Made, unjudged: Path, tmp_path: Path) -> None:
    given = ["--data", made.images, "--against", made.dense, "--metric", save_metric(tmp_path), "--batch-size", 36]
    done = run("evaluate", unjudged, *given, "--update-card", "--json", tmp_path / "figures.json", "-q")
    assert done.code == 0, done.err
    figures = json.loads((tmp_path / "figures.json").read_text())["evaluation"]
    report = CompressionReport.load(unjudged)
    assert report.evaluation is not None
    assert figures["metrics"] == report.evaluation.metrics
    assert report.evaluation.metrics["largest_class"] in range(4)
    assert figures["reference_metrics"] == report.evaluation.reference_metrics
    row = next(row for row in report.rows() if row[0] == "largest_class")
    assert row[2] == f"{report.evaluation.metrics['largest_class']:.4f}"
    assert row[1] == f"{report.evaluation.reference_metrics['largest_class']:.4f}"
    assert "largest_class" in done.out
    assert f"| {' | '.join(row)} |" in Card.load(unjudged / "README.md").text


def test_a_metric_that_cannot_be_loaded_is_named(run: Run, made: Made, unjudged: Path) -> None:
    before = contents(unjudged)
    done = run("evaluate", unjudged, "--data", made.images, "--metric", "no_such", "--update-card", "-q")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: The metric 'no_such' cannot be loaded: ")
    assert contents(unjudged) == before


def test_a_path_is_no_name_of_a_data_set(run: Run, made: Made, unjudged: Path) -> None:
    before = contents(unjudged)
    done = run("evaluate", unjudged, "--data", made.images, "--update-card", "--dataset", "/data/mine", "-q")
    assert done.code == 1
    assert "--dataset takes the Hub id of a data set" in done.err
    assert contents(unjudged) == before


def test_evaluate_leaves_the_card_alone_unless_it_is_asked(run: Run, made: Made, unjudged: Path) -> None:
    before = contents(unjudged)
    assert run("evaluate", unjudged, "--data", made.images, "-q").code == 0
    assert contents(unjudged) == before


@pytest.mark.parametrize("damage", [None, "{"])
def test_without_a_report_there_is_no_card_to_update(run: Run, made: Made, unjudged: Path, damage: str | None) -> None:
    (unjudged / "compression_report.json").unlink()
    if damage is not None:
        (unjudged / "compression_report.json").write_text(damage)
    before = contents(unjudged)
    done = run("evaluate", unjudged, "--data", made.images, "--update-card", "-q")
    assert done.code == 1
    assert "compression_report.json" in done.err.splitlines()[0]
    assert "Traceback" not in done.err
    assert contents(unjudged) == before


def test_figures_of_weights_that_were_trained_since_are_measured_anew(run: Run, made: Made, folder: Path) -> None:
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.classifier.bias.data[0] += 100
    model.save_pretrained(folder)
    assert run("evaluate", folder, "--data", made.images, "--update-card", "-q").code == 0
    report = json.loads((folder / "compression_report.json").read_text())
    assert report["evaluation"]["top1"]["value"] == 0.25
    text = Card.load(folder / "README.md").text
    assert "25.00%" in text
    assert "Afterwards the weights were changed" in text
