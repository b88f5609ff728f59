"""The report: table, Markdown, JSON and figure."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hf_vitcompress import CompressionReport, Evaluation
from hf_vitcompress.errors import ReportError
from hf_vitcompress.evaluation.costs import Costs
from hf_vitcompress.evaluation.intervals import Interval, mean_interval
from hf_vitcompress.evaluation.latency import LatencyReport
from hf_vitcompress.planning.plan import GroupReport, SearchReport
from hf_vitcompress.report.tables import comparison_rows, format_bytes
from support.reports import EVALUATION, LATENCY

Q0, Q1, FC1, FC2 = "layers.0.attention.q_proj", "layers.1.attention.q_proj", "layers.0.mlp.fc1", "layers.0.mlp.fc2"
MLP_SHAPES = {FC1: {"out_features": 16, "rank": 3}, FC2: {"in_features": 16}}
PARTS = [
    GroupReport(Q0, "q", 0, [Q0], "rank 2", {Q0: {"rank": 2}}, 32, 64, 0.01),
    GroupReport("layers.0.mlp", "mlp", 0, [FC1, FC2], "width 16; ranks 3, dense", MLP_SHAPES, 200, 512, 0.005),
    GroupReport("layers.1.mlp", "mlp", 1, ["layers.1.mlp.fc1", "layers.1.mlp.fc2"], "dense", {}, 512, 512, 0.0),
    GroupReport(Q1, "q", 1, [Q1], "rank 1", {Q1: {"rank": 1}}, 16, 64, 0.03),
]


def make_report(**changes: Any) -> CompressionReport:
    values: dict[str, Any] = {
        "model": "FactoredViTForImageClassification",
        "dense": Costs(1000, 20000, 4000),
        "compressed": Costs(400, 9000, 1600),
        "parts": PARTS,
        "predicted_loss": 0.04,
        "calibration_images": 223,
        "bad_images": 1,
        "seconds": {"calibrate": 1.5},
        "settings": {"keep_ratio": 0.4},
        "budget_curve": [(0.9, 0.001), (0.5, 0.02), (0.4, 0.04)],
        "evaluation": EVALUATION,
        "latency": [LATENCY],
    }
    return CompressionReport(**{**values, **changes})


def strict_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_keep_ratio_is_parameters_over_parameters() -> None:
    assert make_report().keep_ratio == 0.4


def test_rows_hold_before_after_and_change() -> None:
    rows = {name: (dense, compressed, change) for name, dense, compressed, change in make_report().rows()}
    assert rows["parameters"] == ("1,000", "400", "40.0% kept")
    assert rows["MACs per image"] == ("20,000", "9,000", "45.0% kept")
    assert rows["weights in memory"] == ("4.0 kB", "1.6 kB", "40.0% kept")
    assert rows["top-1, n=200"] == (
        "92.00% (87.40% to 95.02%)",
        "90.00% (85.06% to 93.43%)",
        "-2.00 points (-3.00 to -1.00)",
    )
    assert rows["agreement"][1].startswith("95.00%")
    assert rows["KL measured"][1] == "0.05 (0.04 to 0.06)"
    assert rows["latency, batch 32"] == ("20.0 ms", "15.0 ms", "0.75 × (0.70 to 0.80)")
    assert rows["KL predicted"][1] == "0.04"


def test_what_was_not_measured_is_said_to_be_so() -> None:
    rows = make_report(evaluation=None, latency=[], predicted_loss=None).rows()
    assert ("top-1", "not measured", "not measured", "") in rows
    assert not [row for row in rows if row[0].startswith(("KL", "latency"))]


def test_no_change_has_no_minus_sign() -> None:
    evaluation = dataclasses.replace(EVALUATION, top1_drop=Interval(0.0, 0.0, 0.0))
    changes = [row[3] for row in make_report(evaluation=evaluation).rows() if row[0].startswith("top-1")]
    assert changes == ["+0.00 points (+0.00 to +0.00)"]


@pytest.mark.parametrize(
    ("found", "compensation", "row"),
    [
        (
            SearchReport(0.01, 150, True, dataset="me/a", split="test"),
            "none",
            ("accuracy drop found on validation, n=150", "", "1.00 points", "me/a, split test"),
        ),
        (
            SearchReport(0.02, 150, False, split="test"),
            "both",
            ("disagreement found on validation, n=150", "", "2.00%", "split test, before compensation"),
        ),
        (
            SearchReport(-0.01, 90, True, compensated=True),
            "both",
            ("accuracy drop found on validation, n=90", "", "-1.00 points", "after an eighth of the compensation"),
        ),
    ],
    ids=["labels", "agreement", "compensated"],
)
def test_the_drop_that_a_search_found_has_a_row(found: SearchReport, compensation: str, row: tuple[str, ...]) -> None:
    report = make_report(search=found, settings={"max_accuracy_drop": 0.02, "compensation": compensation})
    assert row in report.rows()
    assert f"| {' | '.join(row)} |" in report.to_markdown()
    assert CompressionReport.parse(json.dumps(report.to_dict()).encode()).search == found


def test_a_report_of_before_searches_were_recorded_loads() -> None:
    content = make_report().to_dict()
    del content["search"]
    assert CompressionReport.parse(json.dumps(content).encode()).search is None


def test_a_drop_that_cannot_be_is_damage() -> None:
    content = make_report(search=SearchReport(1.5, 150, True)).to_dict()
    with pytest.raises(ReportError, match=r"search\.drop"):
        CompressionReport.parse(json.dumps(content).encode())


def test_what_became_of_a_budget_of_time_has_a_row_and_survives_its_file() -> None:
    found = LatencyReport(0.5, 0.48, dataclasses.replace(LATENCY, ratio=0.4, batch_size=4, device="a CPU (2 threads)"))
    row = (
        "speed-up when planned, batch 4",
        "",
        f"2.50 × ({400 * LATENCY.dense:.3g} ms)",
        "asked 2.00, predicted 2.08; a CPU (2 threads)",
    )
    report = make_report(timed=found)
    assert row in report.rows()
    assert f"| {' | '.join(row)} |" in report.to_markdown()
    assert CompressionReport.parse(json.dumps(report.to_dict()).encode()).timed == found
    content = make_report().to_dict()
    del content["timed"]
    assert CompressionReport.parse(json.dumps(content).encode()).timed is None


@pytest.mark.parametrize("place", [("asked",), ("predicted",), ("measured", "ratio")])
@pytest.mark.parametrize("value", [0, -0.5, 1e30, "Infinity"])
def test_a_latency_that_cannot_be_is_damage(place: tuple[str, ...], value: Any) -> None:
    content = make_report(timed=LatencyReport(0.5, 0.48, LATENCY)).to_dict()
    inner = content["timed"]
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(ReportError, match=rf"timed\.{'.'.join(place)}"):
        CompressionReport.parse(json.dumps(content).encode())


def test_without_classes_the_loss_is_called_relative_error() -> None:
    names = [row[0] for row in make_report(evaluation=Evaluation(10, kl=Interval(0.1, 0.0, 0.2))).rows()]
    assert "relative error" in names
    assert "KL measured" not in names


def test_without_a_dense_model_there_is_no_change() -> None:
    rows = comparison_rows(None, Costs(400, 9000, 1600), None, 1700, None, [])
    assert rows[0] == ("parameters", "", "400", "")
    assert rows[3] == ("weights on disk", "", "1.7 kB", "")


def test_markdown_is_two_well_formed_tables() -> None:
    before_after, by_part = make_report().to_markdown().strip().split("\n\n")
    for text, columns in ((before_after, 4), (by_part, 5)):
        lines = text.splitlines()
        assert all(line.count("|") == columns + 1 for line in lines)
        assert set(lines[1]) == {"|", "-"}
    assert "| layers.0.attention.q_proj | q | rank 2 | 50% | 0.01 |" in by_part
    assert "| layers.0.mlp | mlp | width 16; ranks 3, dense | 39% | 0.005 |" in by_part
    assert "| layers.1.mlp | mlp | dense | 100% | 0 |" in by_part


def test_json_is_complete(tmp_path: Path) -> None:
    report = make_report()
    report.save(tmp_path)
    content = strict_json((tmp_path / "compression_report.json").read_text(encoding="utf-8"))
    assert set(content) == {field.name for field in dataclasses.fields(CompressionReport)} | {"keep_ratio"}
    assert content == json.loads(json.dumps(report.to_dict()))
    assert content["evaluation"]["top1"]["value"] == 0.9
    assert content["parts"][0]["shapes"] == {Q0: {"rank": 2}}
    assert content["parts"][1]["shapes"] == MLP_SHAPES
    assert content["latency"][0]["ratio_high"] == 0.8


def test_json_is_valid_after_one_image(tmp_path: Path) -> None:
    evaluation = Evaluation(1, kl=mean_interval(torch.tensor([0.5])))
    make_report(evaluation=evaluation).save(tmp_path)
    strict_json((tmp_path / "compression_report.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    ("changes", "panels"),
    [({}, 2), ({"predicted_loss": None, "budget_curve": []}, 1), ({"parts": PARTS[:1]}, 2)],
    ids=["everything", "no losses", "one part"],
)
def test_the_figure_is_a_picture_of_a_sane_size(changes: dict[str, Any], panels: int, tmp_path: Path) -> None:
    make_report(**changes).save(tmp_path)
    with Image.open(tmp_path / "compression_report.png") as figure:
        figure.load()
        assert figure.format == "PNG"
        assert 400 <= figure.height <= 900
        assert 700 * panels <= figure.width <= 1000 * panels
        assert len(figure.convert("RGB").getcolors(2**24) or []) > 20


def test_saving_again_replaces_the_files_and_leaves_no_others(tmp_path: Path) -> None:
    make_report().save(tmp_path)
    make_report(calibration_images=5).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"compression_report.{s}" for s in ("json", "md", "png")}
    assert strict_json((tmp_path / "compression_report.json").read_text())["calibration_images"] == 5


def test_it_prints_as_a_table() -> None:
    text = str(make_report())
    assert "FactoredViTForImageClassification" in text
    assert "40.0% kept" in text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (43_122_236, "43.1 MB"), (2e12, "2000.0 GB")]
)
def test_bytes_are_in_decimal_units(count: int, text: str) -> None:
    assert format_bytes(count) == text
