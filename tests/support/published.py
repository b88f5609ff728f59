"""A compressed model with all that is saved beside it, and eyes for what must not be in a published file."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_vitcompress import CompressionConfig, CompressionReport, ViTCompressor, evaluate_model
from hf_vitcompress.errors import DataWarning
from hf_vitcompress.evaluation.latency import measure_latency
from hf_vitcompress.modeling_factored import MANIFEST_FILE
from hf_vitcompress.report.card_file import Card
from support.models import TINY, seeded

TELL_TALE = "zanzibar"
"""Part of everything that is nobody's business: folders of the model and the images, the user, the host, the token."""

TOKEN = f"hf_{TELL_TALE}Token"
BASE_CARD = "---\nlicense: mit\nlanguage: en\nbase_model: someone/vit-tiny\ndatasets: [someone/shapes]\n---\n# Dense\n"
PUBLISHED = {
    "README.md",
    "compression_plan.json",
    "compression_recipe.yaml",
    "compression_report.json",
    "compression_report.md",
    "compression_report.png",
    "config.json",
    "configuration_factored.py",
    "layers_factored.py",
    "model.safetensors",
    "modeling_factored.py",
    "preprocessor_config.json",
    "tokens_factored.py",
}


@dataclass(frozen=True)
class Made:
    """A compressed model, and what it was made from.

    Attributes:
        model: compressed, judged and timed.
        folder: it was saved to.
        dense: folder of the dense model.
        images: folder of labelled images.
    """

    model: PreTrainedModel
    report: CompressionReport
    folder: Path
    dense: Path
    images: Path


def make(root: Path) -> Made:
    """Compress a tiny model in folders that give away who did it and where."""
    home = root / f"home-of-{TELL_TALE}"
    dense, images, folder = home / "dense", home / f"{TELL_TALE}-photos", home / "small"
    save_dense(dense)
    save_images(images)
    surroundings = {"HF_TOKEN": TOKEN, "USER": TELL_TALE, "LOGNAME": TELL_TALE, "HOSTNAME": f"{TELL_TALE}-host"}
    with mock.patch.dict(os.environ, surroundings):
        config = CompressionConfig(keep_ratio=0.5, rank_multiple=1, measuring_images=0, precision="float32")
        compressor = ViTCompressor(config, progress=False)
        small = compressor.compress(str(dense), str(images))
        report = compressor.report
        assert report is not None
        subject = compressor.open(dense)
        source = compressor.open_images(images, subject)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # a random model is no better than guessing
            report.evaluation = evaluate_model(small, source, subject.processor, subject.model, progress=False)
        report.latency = [measure_latency(subject.model, small, 1, rounds=4)]
        small.save_pretrained(folder)
    return Made(small, report, folder, dense, images)


def save_dense(folder: Path) -> None:
    names = {"id2label": {i: f"class{i}" for i in range(4)}, "label2id": {f"class{i}": i for i in range(4)}}
    seeded(ViTForImageClassification, ViTConfig(**{**TINY, **names, "num_labels": 4})).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    (folder / "README.md").write_text(BASE_CARD)


def save_images(folder: Path, per_class: int = 9) -> None:
    generator = torch.Generator().manual_seed(3)
    for name in (f"class{i}" for i in range(4)):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / name / f"{TELL_TALE}-{number}.png")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the list of those that are ours."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def card_of(files: dict[str, bytes]) -> Card:
    return Card.parse(files["README.md"].decode())


def block_count(text: str) -> int:
    return text.count("<!-- hf_vitcompress: begin")
