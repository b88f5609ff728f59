"""The terminal, from flags to files, messages and exit codes."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, BertConfig, BertModel, ViTForImageClassification

import hf_vitcompress
from hf_vitcompress import CompressionConfig, CompressionPlan, cli
from hf_vitcompress.config import BUDGETS, load_settings
from hf_vitcompress.statistics.observer import Observer
from support.dying import run_and_die
from support.models import DIGITS, seeded, tiny_config
from support.processes import alone
from support.terminal import Run, one_line, run_in, running_commands, without_bars  # noqa: F401  (the fixture "run")

MODEL = str(DIGITS / "model")
CALIBRATION = str(DIGITS / "calibration.parquet")
TEST = str(DIGITS / "test.parquet")
RECIPE = ["--rank-multiple", "2", "--precision", "float32", "--batch-size", "32"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compressed digits (`small`), their statistics and what was printed."""
    folder = tmp_path_factory.mktemp("first")
    command = ["compress", MODEL, "--data", CALIBRATION, "--keep-ratio", "0.4", *RECIPE, "--test", TEST]
    command += ["--output", "small", "--statistics", "statistics.safetensors", "--quiet"]
    done = alone(run_in, folder, command, "printed.txt")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def statistics(first: Path) -> Path:
    return first / "statistics.safetensors"


def same_weights(a: Path, b: Path) -> bool:
    one, two = (load_file(folder / "model.safetensors") for folder in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---- compress


def test_compress_prints_the_table_and_saves_a_model(first: Path) -> None:
    printed = (first / "printed.txt").read_text(encoding="utf-8")
    for row in ("parameters", "MACs per image", "top-1, n=500", "agreement", "KL measured", "KL predicted"):
        assert row in printed
    assert "saved to small" in printed
    model = AutoModelForImageClassification.from_pretrained(first / "small")
    assert model.num_parameters() / 205_002 == pytest.approx(0.4, rel=0.005)


def test_compress_leaves_nothing_but_what_was_asked_for(first: Path) -> None:
    assert {path.name for path in first.iterdir()} == {"small", "statistics.safetensors", "printed.txt"}


def test_the_saved_report_holds_the_evaluation(first: Path) -> None:
    report = json.loads((first / "small" / "compression_report.json").read_text(encoding="utf-8"))
    assert report["evaluation"]["images"] == 500
    assert report["evaluation"]["agreement"]["value"] >= 0.95


def test_a_config_file_and_flags_make_the_same_model(run: Run, statistics: Path, tmp_path: Path) -> None:
    shared = {"rank_multiple": 2, "precision": "float32", "batch_size": 32}
    settings = {"keep_ratio": 0.6, "skip_modules": ["fc2"], **shared}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    common = ["compress", MODEL, "--statistics", statistics, "--quiet"]
    flags = ["--keep-ratio", 0.6, *RECIPE, "--skip-modules", "fc2"]
    by_file = run(*common, "--config", tmp_path / "recipe.yaml", "--output", tmp_path / "a")
    by_flags = run(*common, *flags, "--output", tmp_path / "b")
    assert (by_file.code, by_flags.code) == (0, 0), by_file.err
    recipes = [CompressionConfig.load(tmp_path / name / "compression_recipe.yaml") for name in "ab"]
    assert recipes[0] == recipes[1] == CompressionConfig(**settings)
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_another_budget_needs_the_statistics_only(run: Run, statistics: Path, tmp_path: Path) -> None:
    before = statistics.read_bytes()
    budget = ["--max-params", 60000]
    done = run("compress", MODEL, "--statistics", statistics, *budget, *RECIPE, "--output", tmp_path / "s", "-q")
    assert done.code == 0, done.err
    parameters = AutoModelForImageClassification.from_pretrained(tmp_path / "s").num_parameters()
    assert 58000 < parameters <= 60000
    assert statistics.read_bytes() == before


def test_finished_statistics_are_used_again_beside_data(
    run: Run, first: Path, statistics: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Observer, "finish_batch", lambda *_: pytest.fail("calibrated again"))
    arguments = ["--data", CALIBRATION, "--statistics", statistics, "--keep-ratio", 0.4, *RECIPE, "-q"]
    done = run("compress", MODEL, *arguments, "--output", tmp_path / "s")
    assert done.code == 0, done.err
    assert same_weights(tmp_path / "s", first / "small")


# ---- messages


def test_an_output_folder_that_exists_is_not_touched(run: Run, statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    done = run("compress", MODEL, "--statistics", statistics, *RECIPE, "--output", tmp_path)
    assert done.code == 1
    assert "--overwrite" in one_line(done.err)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_an_output_that_is_a_file_is_refused(run: Run, statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    done = run("compress", MODEL, "--statistics", statistics, "--output", tmp_path / "out", "--overwrite")
    assert (done.code, (tmp_path / "out").read_text()) == (1, "a file")
    assert "is a file" in one_line(done.err)


def test_the_current_folder_can_be_the_output(
    run: Run, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("compress", MODEL, "--statistics", statistics, *RECIPE, "--keep-ratio", 0.4, "--output", ".", "-q")
    if done.code == 0:
        assert (tmp_path / "model.safetensors").is_file()
    else:
        assert "output" in one_line(without_bars(done.err))


def bert(folder: Path) -> str:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(folder)
    return str(folder)


def unheard_of(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vitamin"}')
    return str(folder)


def damaged(folder: Path) -> str:
    seeded(ViTForImageClassification, tiny_config()).save_pretrained(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    return str(folder)


MODELS: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda folder: str(folder / "absent"), "absent"),
    "other architecture": (bert, "bert.*beit, clip"),
    "unknown architecture": (unheard_of, "unknown architecture.*beit, clip"),
    "damaged weights": (damaged, "model.*cannot be loaded"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_cannot_be_used_is_one_line(kind: str, run: Run, tmp_path: Path) -> None:
    make, message = MODELS[kind]
    done = run("compress", make(tmp_path / "model"), "--data", CALIBRATION, "--output", tmp_path / "out", "-q")
    assert done.code == 1
    assert re.search(message, one_line(done.err))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", MODEL, "--output", "out"], "--data"),
        (["compress", MODEL, "--output", "out", "--data", "./absent"], "absent"),
        (["compress", MODEL, "--output", "out", "--statistics", "absent.safetensors"], r"absent\.safetensors"),
        (["compress", MODEL, "--output", "out", "--statistics", CALIBRATION], r"calibration\.parquet"),
        (["compress", MODEL, "--output", "out", "--plan", "absent.json"], r"absent\.json"),
        (["compress", MODEL, "--output", "out", "--keep-ratio", "2"], "keep_ratio"),
        (
            ["compress", MODEL, "--output", "out", "--keep-ratio", "0.5", "--max-accuracy-drop", "0.1"],
            "keep_ratio and max_accuracy_drop",
        ),
        (["compress", MODEL, "--output", "out", "--preset", "magic"], "azizi2024"),
        (["compress", MODEL, "--output", "out", "--config", "absent.yaml"], r"absent\.yaml"),
        (["inspect", MODEL], "--data"),
        (["plan", MODEL, "--statistics", "absent"], "absent"),
        (["evaluate", MODEL, "--data", TEST, "--latency"], "--against"),
        (["evaluate", MODEL, "--data", "./absent"], "absent"),
        (["evaluate", MODEL, "--data", TEST, "--precision", "float16", "-q"], "precision"),
    ],
    ids=lambda value: " ".join(str(v) for v in value[:1] + value[2:])[:60] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.code == 1
    assert re.search(message, one_line(without_bars(done.err)))
    assert not list(tmp_path.iterdir())


def test_a_flag_that_does_not_exist_is_a_usage_error(run: Run) -> None:
    done = run("compress", MODEL, "--keep-ration", 0.5)
    assert done.code == 2
    assert "--keep-ration" in done.err


@pytest.mark.parametrize("named", [True, False])
def test_an_interruption_says_how_to_go_on(
    named: bool, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.compression, "_compressor", interrupted)
    kept = tmp_path / ("mine.safetensors" if named else ".out.calibration.safetensors")
    command = ["compress", MODEL, "--data", CALIBRATION, "--output", tmp_path / "out"]
    command += ["--statistics", kept] if named else []
    before = run(*command)
    kept.touch()
    done = run(*command)
    assert (before.code, done.code) == (130, 130)
    assert before.err == "interrupted before the first checkpoint; the same command starts again\n"
    assert done.err == f"interrupted; the same command goes on from {kept}\n"


def test_version_names_package_and_version(run: Run) -> None:
    done = run("--version")
    assert (done.code, done.out, done.err) == (0, f"hf_vitcompress {hf_vitcompress.__version__}\n", "")


# ---- plan, inspect, evaluate


def test_a_plan_can_be_edited_and_given_back(run: Run, statistics: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = run("plan", MODEL, "--statistics", statistics, "--keep-ratio", 0.5, *RECIPE, "--output", file, "-q")
    assert done.code == 0, done.err
    content = json.loads(file.read_text())
    assert content["keep_ratio"] == pytest.approx(0.5, rel=0.005)
    edited = next(name for name, shape in content["layers"].items() if "rank" in shape)
    removed = next(name for name in content["layers"] if name.endswith(".attention") and name not in edited)
    content["layers"][edited]["rank"] = 5
    del content["layers"][removed]
    file.write_text(json.dumps(content))
    arguments = ["--statistics", statistics, *RECIPE, "--plan", file, "--output", tmp_path / "small", "-q"]
    done = run("compress", MODEL, *arguments)
    assert done.code == 0, done.err
    saved = CompressionPlan.load(tmp_path / "small" / "compression_plan.json")
    assert saved.layers == content["layers"]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "small")
    assert model.get_submodule(edited).rank == 5
    assert not hasattr(model.get_submodule(removed), "qk_down")
    assert model.get_submodule(removed).q_proj.weight.shape == model.get_submodule(removed).k_proj.weight.shape
    assert saved.keep_ratio == model.num_parameters() / 205_002


def test_a_plan_takes_the_place_of_budgets(run: Run, statistics: Path, tmp_path: Path) -> None:
    """Their flags are refused beside it; those of a recipe, such as the plan's own, are left out."""
    plan, out = tmp_path / "plan.json", tmp_path / "small"
    plan.write_text('{"layers": {"vit.layers.0.mlp.fc1": {"rank": 5}}}')
    arguments = ["compress", MODEL, "--statistics", statistics, *RECIPE, "--plan", plan, "--output", out, "-q"]
    for flags in (["--speedup", 50], ["--keep-ratio", 0.5], ["--max-params", 10**5, "--max-macs", 10**6]):
        done = run(*arguments, *flags)
        assert done.code == 1
        named = " and ".join(flag for flag in map(str, flags) if flag.startswith("--"))
        assert f"--plan takes the place of a budget: leave out {named}, or the plan" in one_line(done.err)
        assert not out.exists()
    (tmp_path / "recipe.yaml").write_text("speedup: 50\nseed: 3\n")
    done = run(*arguments, "--config", tmp_path / "recipe.yaml")
    assert done.code == 0, done.err
    assert load_settings(out / "compression_recipe.yaml")["seed"] == 3
    assert not set(BUDGETS) & set(load_settings(out / "compression_recipe.yaml"))


def test_without_an_output_the_plan_alone_is_printed(run: Run, statistics: Path) -> None:
    done = run("plan", MODEL, "--statistics", statistics, "--keep-ratio", 0.4, *RECIPE, "-q")
    assert done.code == 0
    assert set(json.loads(done.out)) == {
        "layers",
        "predicted_loss",
        "predicted_interval",
        "keep_ratio",
        "budget",
        "tokens",
    }


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"layers": [1]}', '{"layers": {"vit.layers.0.mlp.fc1": "all"}}', "{", '{"ranks": {}}']
)
def test_a_file_that_is_no_plan_is_one_line(content: str, run: Run, statistics: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    arguments = ["--statistics", statistics, *RECIPE, "--plan", tmp_path / "plan.json", "--output", tmp_path / "out"]
    done = run("compress", MODEL, *arguments, "-q")
    assert done.code == 1
    assert "plan" in one_line(without_bars(done.err))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("drawn")
def test_inspect_shows_losses_over_budgets_and_by_part(run: Run, statistics: Path, tmp_path: Path) -> None:
    figure = tmp_path / "figure.png"
    done = run("inspect", MODEL, "--statistics", statistics, "--keep-ratio", 0.4, *RECIPE, "--figure", figure, "-q")
    assert done.code == 0, done.err
    title = r"ViTForImageClassification for keep ratio 0\.4: (39|40)\.\d% of the parameters kept"
    assert re.search(title, " ".join(done.out.split()))
    assert "vit.layers" in done.out
    assert "3.mlp" in done.out
    assert re.search(r"rank \d+", done.out)
    assert re.search(r"width \d+", done.out)
    losses = [float(loss) for _, loss in re.findall(r"│ (0\.\d\d) +│ +([\d.e-]+) │", done.out)]
    assert len(losses) >= 8
    assert losses == sorted(losses)
    with Image.open(figure) as image:
        assert min(image.size) > 300


def test_evaluate_compares_two_checkpoints(run: Run, first: Path, tmp_path: Path) -> None:
    arguments = ["--data", TEST, "--against", MODEL, "--latency", "--json", tmp_path / "figures.json", "-q"]
    done = run("evaluate", first / "small", *arguments)
    assert done.code == 0, done.err
    for row in ("parameters", "weights on disk", "top-1, n=500", "agreement", "latency, batch 32"):
        assert row in done.out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["costs"]["parameters"] < figures["dense_costs"]["parameters"] == 205_002
    assert figures["disk_bytes"] == (first / "small" / "model.safetensors").stat().st_size
    assert figures["evaluation"]["reference_top1"]["value"] == 0.982
    assert figures["latency"][0]["dense"] > 0
    saved = json.loads((first / "small" / "compression_report.json").read_text())
    assert figures["evaluation"]["top1"] == saved["evaluation"]["top1"]


def test_evaluate_judges_one_checkpoint_by_its_labels(run: Run) -> None:
    done = run("evaluate", MODEL, "--data", TEST, "-q")
    assert done.code == 0, done.err
    assert "98.20%" in done.out
    assert "agreement" not in done.out


# ---- interruption


def interruptible(folder: Path) -> list[str]:
    output = ["--output", str(folder / "small")]
    return ["compress", MODEL, "--data", CALIBRATION, "--keep-ratio", "0.4", *RECIPE, *output, "-q"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left of a run that was killed after 128 images."""
    folder = tmp_path_factory.mktemp("killed")
    killed = alone(run_and_die, interruptible(folder))
    assert killed.code == -signal.SIGKILL, killed.err
    (file,) = folder.glob(".*.safetensors")
    return file


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(
    run: Run, first: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(checkpoint, tmp_path)
    finish, batches = Observer.finish_batch, []

    def counted(*args: Any, **kwargs: Any) -> None:
        batches.append(1)
        finish(*args, **kwargs)

    monkeypatch.setattr(Observer, "finish_batch", counted)
    done = run(*interruptible(tmp_path))
    assert done.code == 0, done.err
    assert len(batches) == 3, "223 images in batches of 32, 128 of them seen before; 74 measure the losses"
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert same_weights(tmp_path / "small", first / "small")


def test_a_killed_run_does_not_go_on_under_other_settings(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint, tmp_path)
    done = run(*interruptible(tmp_path), "--seed", 1)
    assert done.code == 1
    assert checkpoint.name in one_line(without_bars(done.err)), "the file to delete must be named"
    assert (tmp_path / checkpoint.name).read_bytes() == checkpoint.read_bytes()
