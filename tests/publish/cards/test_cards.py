"""What a card says: figures of these very weights, what was not measured, how it was made, whom to cite."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vitcompress import CompressionConfig, CompressionReport, ViTCompressor
from hf_vitcompress.compensation.course import CompensationReport
from hf_vitcompress.config import PRESETS
from hf_vitcompress.errors import ReportError
from hf_vitcompress.evaluation.latency import LatencyReport
from hf_vitcompress.importance.report import GatePoint, GateReport
from hf_vitcompress.planning.plan import SearchReport
from hf_vitcompress.publish.cards import model_card, write_card
from hf_vitcompress.publish.cards.citations import citations
from hf_vitcompress.report.card_file import Card
from hf_vitcompress.report.provenance import Origin
from support.cards import POINTS, PUBLISHED_ORIGIN, card_with, judged
from support.fake_hub.cards import check_card
from support.models import TINY, seeded, tiny_config
from support.published import Made
from support.reports import LATENCY
from support.students import random_images


def text_with(made: Made, **changes: Any) -> str:
    return card_with(made, **changes).text


def rows_of(text: str) -> dict[str, list[str]]:
    """The cells of the table before and after, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 5 for line in text.splitlines() if line.startswith("|"))
    return {name.split(",")[0] if name.startswith("top-1") else name: cells for name, *cells in lines[2:]}


# ---- figures


def test_the_table_holds_everything_before_and_after(made: Made) -> None:
    rows = rows_of(text_with(made))
    report, size = made.report, (made.folder / "model.safetensors").stat().st_size
    assert rows["parameters"] == [f"{report.dense.parameters:,}", f"{report.compressed.parameters:,}", "49.9% kept"]
    assert rows["MACs per image"][:2] == [f"{report.dense.macs:,}", f"{report.compressed.macs:,}"]
    dense_size = (made.dense / "model.safetensors").stat().st_size
    assert rows["weights on disk"][:2] == [f"{dense_size / 1000:.1f} kB (F32)", f"{size / 1000:.1f} kB (F32)"]
    assert re.fullmatch(r"\d+\.\d\d% \(\d+\.\d\d% to \d+\.\d\d%\)", rows["top-1"][1])
    assert re.fullmatch(r"[+-]\d+\.\d\d points \(.*\)", rows["top-1"][2])
    assert rows["agreement"][1].endswith("%)")
    assert re.fullmatch(r"\d+\.\d ms", rows["latency, batch 1"][1])


def test_intervals_and_images_are_explained(made: Made) -> None:
    text = text_with(made, evaluation=judged(made, dataset="me/a"), latency=[LATENCY])
    assert "top-1, n=200" in text
    assert "Accuracy: 200 images of `me/a`, float32; in brackets 95 % intervals" in text
    assert "median of 15, on a processor" in text


def test_what_was_not_measured_is_named(made: Made) -> None:
    text = text_with(made, evaluation=None, latency=[], predicted_loss=0.04)
    rows = rows_of(text)
    for name in ("top-1", "agreement", "latency"):
        assert rows[name][:2] == ["not measured", "not measured"]
    assert "Its accuracy was not measured; the KL divergence that the report predicts is an estimate." in text
    assert "Its speed was not measured." in text
    assert "Its accuracy was not measured." in text_with(made, evaluation=None, predicted_loss=None)


TIMED = LatencyReport(0.5, 0.48, replace(LATENCY, ratio=0.4, batch_size=4, device="a CPU (2 threads)"))


def test_a_latency_that_was_measured_when_planned_is_no_missing_one(made: Made) -> None:
    text = text_with(made, latency=[], timed=TIMED)
    rows = rows_of(text)
    assert rows["latency when planned, batch 4"] == ["20.0 ms", "15.0 ms", "0.40 × (0.70 to 0.80)"]
    assert "latency" not in rows
    assert "Latency when planned: of a model with these shapes, before its weights were computed" in text
    assert "median of 15, on a CPU (2 threads)" in text
    assert "speed was not measured" not in text
    quantized = text_with(made, latency=[], timed=TIMED, quantization="int8_dynamic")
    assert "Its speed was measured before it was quantized, and not since." in quantized


def test_a_latency_of_the_model_itself_takes_the_place_of_that_when_planned(made: Made) -> None:
    text = text_with(made, latency=[LATENCY], timed=TIMED)
    assert "latency, batch 32" in rows_of(text)
    assert "latency when planned, batch 4" not in rows_of(text)
    assert "Latency when planned" not in text


def test_accuracy_without_labels_is_named_as_not_measured(made: Made) -> None:
    text = text_with(made, evaluation=judged(made, top1=None, reference_top1=None, top1_drop=None))
    assert rows_of(text)["top-1"][:2] == ["not measured", "not measured"]
    assert rows_of(text)["agreement"][1].startswith("95.00%")
    assert "There were no labels" in text


def trained(made: Made, folder: Path, **settings: Any) -> str:
    """The card after one more step on other weights."""
    model = copy.deepcopy(made.model)
    with torch.no_grad():
        model.classifier.weight += 0.01
    model.save_pretrained(folder, **settings)
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("shard", ["50GB", "20KB"])
def test_figures_of_other_weights_are_not_claimed(made: Made, tmp_path: Path, shard: str) -> None:
    card = Card.parse(trained(made, tmp_path, max_shard_size=shard))
    assert "model-index" not in card.metadata
    assert rows_of(card.text)["top-1"][:2] == ["not measured", "not measured"]
    assert not {"agreement", "KL measured"} & {name for name, row in rows_of(card.text).items() if row[1][0].isdigit()}
    assert "Afterwards the weights were changed" in card.text
    assert "The accuracy that the report gives is of other weights than these" in card.text
    assert "weights in memory" not in rows_of(card.text)


def test_weights_stored_in_another_type_are_other_weights(made: Made, tmp_path: Path) -> None:
    copy.deepcopy(made.model).half().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert rows_of(text)["weights on disk"][1].endswith("(F16)")
    assert rows_of(text)["top-1"][:2] == ["not measured", "not measured"]
    assert "weights in memory" not in rows_of(text)


def test_trained_weights_that_were_judged_afterwards_have_figures(made: Made, tmp_path: Path) -> None:
    trained(made, tmp_path)
    report = CompressionReport.load(tmp_path)
    report.evaluation = judged(replace(made, folder=tmp_path))
    card = write_card(tmp_path, report)
    assert rows_of(card.text)["top-1"][1].startswith("90.00%")
    assert "Afterwards the weights were changed" in card.text


def test_an_evaluation_of_unknown_weights_is_that_of_the_result(made: Made, tmp_path: Path) -> None:
    """Reports of older versions do not say which weights were judged."""
    assert rows_of(text_with(made, evaluation=judged(made, weights=None)))["top-1"][1].startswith("90.00%")
    nothing_known = text_with(made, evaluation=judged(made, weights=None), weights=None)
    assert rows_of(nothing_known)["top-1"][1] == "not measured"


def test_other_files_beside_the_weights_change_nothing(made: Made, folder: Path) -> None:
    before = model_card(folder)
    for name in ("model_ema.safetensors", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"no weights of ours")
    assert model_card(folder) == before


# ---- words


def test_a_published_model_and_one_made_from_it_are_told_apart(made: Made) -> None:
    published = text_with(made, origin=PUBLISHED_ORIGIN)
    assert "# vit-base-patch16-224 at 50% of its parameters" in published
    assert (
        "This is [`google/vit-base-patch16-224`](https://huggingface.co/google/vit-base-patch16-224), comp" in published
    )
    derived = text_with(made)
    assert "# ViTForImageClassification at 50% of its parameters" in derived
    assert "This is a ViTForImageClassification made from [`someone/vit-tiny`]" in derived
    assert "a ViTForImageClassification that is not published" in text_with(made, origin=Origin())


def test_a_licence_that_is_not_known_is_named(made: Made) -> None:
    assert "licence of the dense model is not known" in text_with(made, origin=Origin())
    assert "licence of the dense model is not known" not in text_with(made)
    assert "licence of the dense model is not known" not in text_with(made, origin=Origin(), known={"license": "mit"})


def test_the_repository_stands_in_the_code_that_loads_it(made: Made) -> None:
    text = text_with(made, repo_id="me/x")
    assert text.count('AutoModelForImageClassification.from_pretrained("me/x"') == 2
    assert 'AutoImageProcessor.from_pretrained("me/x")' in text
    assert "path/or/hub-id" in text_with(made, repo_id=None)


def test_how_it_was_made(made: Made) -> None:
    text = text_with(
        made,
        bad_images=3,
        calibration_dataset="me/a",
        seconds={"calibrate": 0.26, "compensate": 61.0},
        compensation=CompensationReport("both", 1000, 256, POINTS, 61.0),
        gates=GateReport(500, 2.0, 0.05, [GatePoint(1, 30.0, 500, 0.1, 0.5, 0.2, 0.4)], [], 30.0),
    )
    assert "Calibration: 36 images of `me/a`" in text
    assert "3 images could not be read" in text
    assert "Compensation (residual and distill): 1,000 images without labels, 61 s" in text
    assert "learned from 500 images in 30 s" in text
    assert "Seconds: calibrate 0.3, compensate 61." in text
    assert re.search(r"Versions: hf_vitcompress \S+, transformers \S+", text)
    assert "keep_ratio: 0.5" in text


@pytest.mark.parametrize(
    ("dataset", "split", "place"),
    [
        (None, None, " from a source not on record"),
        (None, "train", " of the split `train` from a source not on record"),
        ("me/a", "train", " of `me/a`, split `train`"),
        (None, "/mnt/mine/photos", " from a source not on record"),
        ("/mnt/mine/data", r"C:\photos", " from a source not on record"),
    ],
)
def test_the_images_are_named_as_far_as_others_may_know_them(
    dataset: str | None, split: str | None, place: str, made: Made
) -> None:
    figures = judged(made, dataset=dataset, split=split)
    text = text_with(made, calibration_dataset=dataset, calibration_split=split, evaluation=figures)
    assert f"Calibration: 36 images{place}; labels were not used." in text
    assert f"Accuracy: 200 images{place.removesuffix(' from a source not on record')}, float32;" in text
    assert "photos" not in text
    assert "/mnt" not in text


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            SearchReport(0.01, 1500, True, dataset="me/a", split="test"),
            "Search on 1,500 validation images of `me/a`, split `test`: accuracy drop 1.00 points, before "
            "compensation.",
        ),
        (
            SearchReport(0.02, 150, False, True, dataset="/mnt/mine/data", split="test"),
            "Search on 150 validation images of the split `test`: disagreement 2.00%, after an eighth of the "
            "compensation.",
        ),
    ],
    ids=["labels", "agreement"],
)
def test_the_drop_that_a_search_found_is_named(found: SearchReport, sentence: str, made: Made) -> None:
    assert f"- {sentence}\n" in text_with(made, search=found, settings={"compensation": "both"})
    assert "Search on" not in text_with(made, search=None)


def test_labels_are_owned_up_to(made: Made) -> None:
    settings = {**made.report.settings, "label_weight": 0.5}
    done = CompensationReport("distill", 1000, 256, POINTS, 61.0)
    assert "1,000 images with labels" in text_with(made, settings=settings, compensation=done)


def test_a_quantized_model_says_so_and_keeps_its_memory(made: Made) -> None:
    text = text_with(made, quantization="int8_dynamic", weights="other")
    assert "at 50% of its parameters, int8_dynamic" in text
    assert "Its weights are quantized to int8_dynamic." in text
    assert "weights in memory" in rows_of(text)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation": None, "latency": [], "origin": Origin(), "environment": None, "seconds": {}},
        {"compensation": CompensationReport("both", 1000, 256, POINTS, 61.0), "bad_images": 3},
        {"settings": {"keep_ratio": 0.4}},
        {"settings": CompressionConfig.preset("svd").to_dict()},
    ],
    ids=["everything", "nothing", "compensated", "old settings", "no references"],
)
def test_the_markdown_is_well_formed(made: Made, changes: dict[str, Any]) -> None:
    text = text_with(made, **changes)
    assert "\n\n\n" not in text
    assert not re.search(r"\{\{|\{%|\bNone\b(?! of)|\bnan\b|Undefined", text)
    assert text.count("```") % 2 == 0
    headings = [line for line in text.splitlines() if re.match(r"#+ ", line)]
    assert [heading.split()[0] for heading in headings] == ["#", *["##"] * 5]
    for heading in headings:
        assert f"\n{heading}\n\n" in text
    for before, after in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        assert not (before.startswith("|") and after and not after.startswith("|")), "a table ends with a blank line"
        assert not (after.startswith("- ") and before and not before.startswith("- ")), "a list begins after one"
    names = {"compression_report.md", "compression_plan.json", "compression_report.png"}
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    assert {link for link in links if not link.startswith("https://")} == names


# ---- models of every kind


@pytest.mark.parametrize(
    ("dense", "auto", "task"),
    [
        (ViTForImageClassification, "AutoModelForImageClassification", "image-classification"),
        (DeiTForImageClassification, "AutoModelForImageClassification", "image-classification"),
        (DeiTForImageClassificationWithTeacher, "AutoModelForImageClassification", "image-classification"),
        (ViTModel, "AutoModel", "image-feature-extraction"),
        (ViTForMaskedImageModeling, "AutoModelForMaskedImageModeling", None),
    ],
)
def test_models_of_every_kind_have_cards(
    dense: type[PreTrainedModel], auto: str, task: str | None, tmp_path: Path
) -> None:
    settings = {**TINY, "encoder_stride": 4}
    config = DeiTConfig(**settings) if dense.__name__.startswith("DeiT") else tiny_config(encoder_stride=4)
    recipe = CompressionConfig(keep_ratio=0.6, rank_multiple=1, measuring_images=0, precision="float32")
    small = ViTCompressor(recipe, progress=False).compress(seeded(dense, config), random_images(24))
    small.save_pretrained(tmp_path)
    card = Card.load(tmp_path / "README.md")
    assert check_card(str(card)) == {"errors": [], "warnings": []}
    assert card.metadata.get("pipeline_tag") == task
    assert f'{auto}.from_pretrained("path/or/hub-id")' in card.text
    names = rows_of(card.text).keys()
    assert ("top-1" in names) == (auto == "AutoModelForImageClassification")
    assert "weights on disk" in names
    if task != "image-classification":
        assert "How far its outputs are from those of the dense model was not measured." in card.text
        assert "accuracy was not measured" not in card.text


def test_an_unknown_model_type_has_a_card_too(made: Made, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "later", "architectures": None}))
    assert "AutoModel.from_pretrained" in model_card(folder).text


# ---- references

CITED = {
    "default": ["martens2015optimizing", "frantar2022optimal"],
    "low_rank": ["martens2015optimizing"],
    "svd": [],
    "fwsvd": ["hsu2022language"],
    "svd_llm": ["wang2024svdllm"],
    "azizi2024": ["azizi2024memory"],
    "vtp": ["zhu2021vision", "hinton2015distilling"],
    "kumar2022": ["kumar2022vision", "zhu2021vision", "hinton2015distilling"],
}


def keys(settings: dict[str, Any]) -> list[str]:
    return [re.match(r"@misc\{(\w+),", entry)[1] for entry in citations(settings)]  # type: ignore[index]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_card_cites_the_methods_of_its_recipe(made: Made, preset: str) -> None:
    settings = CompressionConfig.preset(preset).to_dict()
    assert keys(settings) == CITED[preset]
    text = text_with(made, settings=settings)
    assert re.findall(r"@misc\{(\w+),", text) == CITED[preset]
    for entry in citations(settings):
        assert entry.count("{") == entry.count("}")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"compensation": "residual"}, "azizi2024memory"),
        ({"compensation": "distill"}, "hinton2015distilling"),
        ({"compensation": "both", "optimizer": "preconditioned"}, "vyas2024soap"),
        ({"criterion": "gates"}, "zhu2021vision"),
    ],
)
def test_methods_added_to_a_recipe_are_cited(settings: dict[str, Any], key: str) -> None:
    assert key in keys(CompressionConfig(**settings).to_dict())
    assert key not in keys(CompressionConfig().to_dict())


def test_a_recipe_of_an_earlier_version_is_cited_alike() -> None:
    settings = CompressionConfig(criterion="gates").to_dict()
    former = {**settings, "selector": settings.pop("criterion"), "crop": 0.1}
    former.pop("criterion")
    assert keys(former) == keys(CompressionConfig(criterion="gates").to_dict())


def test_what_is_not_pruned_was_not_repaired() -> None:
    assert "frantar2022optimal" not in keys(CompressionConfig(attention="low_rank", mlp="low_rank").to_dict())
    assert "frantar2022optimal" not in keys(CompressionConfig(repair=False).to_dict())


# ---- the report it is written from


def test_without_a_report_there_is_no_card(folder: Path) -> None:
    before = (folder / "README.md").read_bytes()
    (folder / "compression_report.json").unlink()
    with pytest.raises(ReportError, match=r"no compression_report\.json"):
        write_card(folder)
    assert (folder / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"model": 3}', "null", "\x00"],
    ids=["empty", "cut", "list", "nothing", "few", "null", "binary"],
)
def test_a_damaged_report_is_named(folder: Path, content: str) -> None:
    (folder / "compression_report.json").write_text(content)
    with pytest.raises(ReportError, match=r"compression_report\.json' is damaged"):
        CompressionReport.load(folder)


def test_a_report_comes_back_as_it_was(made: Made, tmp_path: Path) -> None:
    compensation = CompensationReport("both", 1000, 256, POINTS, 61.0)
    report = replace(made.report, compensation=compensation, quantization="int8_dynamic", latency=[LATENCY] * 2)
    report.save(tmp_path)
    assert CompressionReport.load(tmp_path) == report


def test_a_report_of_an_earlier_version_has_a_card(made: Made, folder: Path) -> None:
    """Without what came later: origin, environment, digests, and newer settings."""
    report = json.loads((folder / "compression_report.json").read_text())
    for name in ("origin", "calibration_dataset", "environment", "weights", "quantization", "gates"):
        del report[name]
    for name in ("criterion", "repair", "optimizer", "label_weight"):
        del report["settings"][name]
    (folder / "compression_report.json").write_text(json.dumps(report))
    card = write_card(folder)
    assert check_card(str(card)) == {"errors": [], "warnings": []}


def test_the_figure_that_a_card_shows_is_there(made: Made) -> None:
    with Image.open(made.folder / "compression_report.png") as figure:
        assert figure.format == "PNG"
