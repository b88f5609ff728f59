"""Figures as rows of text."""

import dataclasses

import pytest

from hf_vitcompress.evaluation.costs import Costs
from hf_vitcompress.evaluation.evaluation import Evaluation
from hf_vitcompress.evaluation.intervals import Interval
from hf_vitcompress.report.tables import NOT_MEASURED, comparison_rows, format_bytes, table
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
