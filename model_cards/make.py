"""Make the cards in this folder anew, by compressing, judging and timing the models: about 20 minutes on two cores.

    python model_cards/make.py [digits-50 | vit-s14-cifar10-50 | vit-s14-cifar10-40]

The digits model lies in examples/; the ViT-S/14 and the CIFAR-10 images are expected beside the repository. Each card
lies in a folder of its own with what it links to; the weights are not kept, except with --keep.
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_vitcompress import CompressionConfig, ViTCompressor, evaluate_model
from hf_vitcompress.evaluation.latency import LATENCY_BATCHES, measure_latency
from hf_vitcompress.modeling_factored import CARD_FILE
from hf_vitcompress.publish.cards import write_card
from hf_vitcompress.publish.record import PLAN_FILE
from hf_vitcompress.report.report import FIGURE_FILE, REPORT_NAME

HERE = Path(__file__).parent
DIGITS = HERE.parent / "examples" / "digits"
SHARED = HERE.parents[1] / "shared" / "assets"
PUBLISHED = (CARD_FILE, FIGURE_FILE, f"{REPORT_NAME}.md", PLAN_FILE)


@dataclass(frozen=True)
class Card:
    """A model, its images, and what is known about them beyond their files.

    Attributes:
        dataset: Hub id that the images come from.
        known: card metadata.
    """

    model: Path
    calibration: Path
    test: Path
    config: CompressionConfig
    dataset: str | None = None
    known: Mapping[str, Any] = field(default_factory=dict)


def cards(minutes: float) -> dict[str, Card]:
    digits = CompressionConfig(keep_ratio=0.5, rank_multiple=2)
    terms = {"license": "apache-2.0"}
    vit = Card(
        SHARED / "vit-s14-cifar10",
        SHARED / "cifar10" / "calibration.parquet",
        SHARED / "cifar10" / "test.parquet",
        CompressionConfig(keep_ratio=0.5, compensation="distill", compensation_duration=f"{minutes} minutes"),
        "uoft-cs/cifar10",
        {**terms, "datasets": ["uoft-cs/cifar10"]},
    )
    return {
        "digits-50": Card(
            DIGITS / "model",
            DIGITS / "calibration.parquet",
            DIGITS / "test.parquet",
            digits,
            known=terms,
        ),
        "vit-s14-cifar10-50": vit,
        "vit-s14-cifar10-40": replace(vit, config=vit.config.with_budget(keep_ratio=0.4)),
    }


def make(name: str, card: Card, keep: Path | None) -> None:
    """Compress, save, judge, time, and write the card into `model_cards/<name>`."""
    compressor = ViTCompressor(card.config)
    dense = compressor.open(card.model)
    small = compressor.compress(dense, card.calibration)
    report = compressor.report
    assert report is not None
    test = compressor.open_images(card.test, dense)
    evaluation = evaluate_model(small, test, dense.processor, dense.model)
    report.calibration_dataset = card.dataset
    report.evaluation = replace(evaluation, dataset=card.dataset)
    report.latency = [measure_latency(dense.model, small, size) for size in LATENCY_BATCHES]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if keep is None else keep / name
        small.save_pretrained(folder)
        write_card(folder, known=card.known)
        (HERE / name).mkdir(exist_ok=True)
        for file in PUBLISHED:
            shutil.copyfile(folder / file, HERE / name / file)
    print(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cards to make; all by default")
    parser.add_argument("--minutes", type=float, default=5.0, help="of compensation, for the ViT-S/14")
    parser.add_argument("--keep", type=Path, help="keep the compressed models in this folder")
    arguments = parser.parse_args()
    known = cards(arguments.minutes)
    if unknown := set(arguments.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in arguments.names or known:
        make(name, known[name], arguments.keep)


if __name__ == "__main__":
    main()
