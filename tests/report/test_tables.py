"""Figures as rows of text."""

import dataclasses

import pytest

from hf_vitcompress.evaluation.costs import Costs
from hf_vitcompress.evaluation.evaluation import Evaluation
from hf_vitcompress.evaluation.intervals import Interval
from hf_vitcompress.planning.plan import GroupReport
from hf_vitcompress.report.tables import (
    NOT_MEASURED,
    PartsTable,
    common_prefix,
    comparison_rows,
    format_bytes,
    show,
    table,
)
from hf_vitcompress.runtime.text import loss_text
from support.reports import EVALUATION, LATENCY

DENSE, SMALL = Costs(1000, 20000, 4000), Costs(400, 9000, 1600)


def rows(evaluation: Evaluation | None = None, disk: tuple[int | None, int | None] = (None, None)) -> dict[str, tuple]:
    return {name: row for name, *row in comparison_rows(DENSE, SMALL, *disk, evaluation, [])}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (86_000_000, "86.0 MB"),
        (999_999_999, "1.0 GB"),
        (2_500_000_000_000, "2500.0 GB"),
    ],
)
def test_bytes_are_shown_in_decimal_units(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_weights_on_disk_appear_where_they_are_known() -> None:
    assert "weights on disk" not in rows()
    assert rows(disk=(None, 1700))["weights on disk"] == ["", "1.7 kB", ""]
    assert rows(disk=(4200, 1700))["weights on disk"] == ["4.2 kB", "1.7 kB", "40.5% kept"]


def test_without_an_evaluation_accuracy_is_said_not_to_be_measured() -> None:
    assert rows()["top-1"] == [NOT_MEASURED, NOT_MEASURED, ""]


def test_a_model_that_nothing_was_compared_with_has_no_change() -> None:
    alone = Evaluation(images=200, top1=EVALUATION.top1)
    assert rows(alone)["top-1, n=200"] == ["", "90.00% (85.06% to 93.43%)", ""]
    assert not {"agreement", "KL measured", "relative error"} & rows(alone).keys()


def test_without_labels_there_is_no_row_of_accuracy() -> None:
    unlabelled = dataclasses.replace(EVALUATION, top1=None, reference_top1=None, top1_drop=None)
    assert not [name for name in rows(unlabelled) if name.startswith("top-1")]
    assert rows(unlabelled)["agreement"][1].startswith("95.00%")


def test_a_gain_is_a_plus_and_its_interval_is_in_order() -> None:
    better = dataclasses.replace(EVALUATION, top1_drop=Interval(-0.01, -0.03, 0.01))
    assert rows(better)["top-1, n=200"][2] == "+1.00 points (-1.00 to +3.00)"


def test_every_metric_has_a_row() -> None:
    both = dataclasses.replace(EVALUATION, metrics={"f1": 0.75, "mcc": 0.5}, reference_metrics={"f1": 0.8, "mcc": 0.5})
    assert rows(both)["f1"] == ["0.8000", "0.7500", "-0.0500"]
    assert rows(both)["mcc"] == ["0.5000", "0.5000", "+0.0000"]
    assert rows(Evaluation(images=200, metrics={"f1": 0.75}))["f1"] == ["", "0.7500", ""]


def test_every_batch_size_has_a_row() -> None:
    latencies = [dataclasses.replace(LATENCY, batch_size=size) for size in (1, 32)]
    names = [name for name, *_ in comparison_rows(DENSE, SMALL, None, None, None, latencies)]
    assert names[-2:] == ["latency, batch 1", "latency, batch 32"]


def test_the_terminal_shows_every_cell() -> None:
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(("", "dense", "model"), [("parameters", "1,000", "400"), ("top-1", "", "90.00%")], "title"))
    for text in ("title", "dense", "parameters", "1,000", "400", "90.00%"):
        assert text in capture.get()


@pytest.mark.parametrize(
    ("loss", "text"),
    [(0.0, "0"), (1.4493268544266028e-05, "1.45e-05"), (0.00012349, "0.000123"), (0.5, "0.5"), (2.71828, "2.72")],
)
def test_losses_have_three_significant_digits(loss: float, text: str) -> None:
    assert loss_text(loss) == text
    assert loss_text(loss, (loss, 2.0)) == f"{text} ({text} to 2)"


def test_a_small_divergence_is_not_zero() -> None:
    close = dataclasses.replace(EVALUATION, kl=Interval(1.2345e-5, 1.1e-5, 1.3e-5))
    assert rows(close)["KL measured"][1] == "1.23e-05 (1.1e-05 to 1.3e-05)"


# ---- names in terminals of any width

NAMES = [f"vit.encoder.layers.{i}.attention{end}" for i in (0, 11) for end in ("", ".v_proj")]
PARTS = [GroupReport(name, "qk", 0, [name], "8 a head; ranks dense, 16", {}, 44, 100, 1.23e-6) for name in NAMES]


def shown(columns: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    show(PartsTable(PARTS, "a model"))
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [200, None])
def test_names_are_whole_where_there_is_room_and_in_a_pipe(
    columns: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(columns, capsys, monkeypatch)
    assert not [name for name in NAMES if f"│ {name} " not in text]
    assert "1.23e-06" in text


def test_names_lose_what_they_share_where_they_do_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(85, capsys, monkeypatch)
    assert "┃ part of vit.encoder.layers ┃" in text
    assert "│ 11.attention.v_proj " in text


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_no_terminal_is_too_narrow(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(columns, capsys, monkeypatch)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    cells = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert "".join(cells) == "".join(name.removeprefix("vit.encoder.layers.") for name in NAMES)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["a.b.c", "a.b.d"], "a.b."),
        (["a.b", "a.b.c"], "a."),
        (["a.b", "c.b"], ""),
        (["ab.x", "abc.x"], ""),
        (["fc", "fd"], ""),
        (["a.b.c"], "a.b."),
        ([], ""),
    ],
)
def test_names_share_whole_words(names: list[str], prefix: str) -> None:
    assert common_prefix(names) == prefix
