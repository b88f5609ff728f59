"""Factored models of every head and in every form, made from configs."""

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    TrainingArguments,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from hf_vitcompress.configuration_factored import factored_config_class
from hf_vitcompress.modeling_factored import factored_model_class
from support.models import TINY, seeded

HEADS = [
    (ViTModel, AutoModel),
    (ViTForImageClassification, AutoModelForImageClassification),
    (ViTForMaskedImageModeling, AutoModelForMaskedImageModeling),
    (DeiTModel, AutoModel),
    (DeiTForImageClassification, AutoModelForImageClassification),
    (DeiTForImageClassificationWithTeacher, AutoModelForImageClassification),
    (DeiTForMaskedImageModeling, AutoModelForMaskedImageModeling),
]
every_head = pytest.mark.parametrize(("dense", "auto"), HEADS, ids=[dense.__name__ for dense, _ in HEADS])

RANKS = {"layers.0.attention.q_proj": 4, "layers.0.mlp.fc1": 8, "layers.1.mlp.fc2": 6}
HEADS_LEFT = {f"layers.0.attention.{letter}_proj": {"out_features": 24} for letter in "qkv"}
FORMS = {
    "factored": {name: {"rank": rank} for name, rank in RANKS.items()},
    "narrow hidden layer": {"layers.0.mlp.fc1": {"out_features": 40}, "layers.0.mlp.fc2": {"in_features": 40}},
    "narrow factored hidden layer": {
        "layers.0.mlp.fc1": {"out_features": 40, "rank": 7},
        "layers.0.mlp.fc2": {"in_features": 40, "rank": 6},
    },
    "shared down": {"layers.0.attention": {"qk_rank": 6}, "layers.1.attention": {"qk_rank": 32}},
    "narrow values": {
        "layers.0.attention.v_proj": {"out_features": 12},
        "layers.0.attention.o_proj": {"in_features": 12},
    },
    "fewer heads": {**HEADS_LEFT, "layers.0.attention.o_proj": {"in_features": 24}},
    "fewer heads of narrow values on a shared down": {
        "layers.0.attention": {"qk_rank": 5},
        **{name: shape for name, shape in HEADS_LEFT.items() if "v_proj" not in name},
        "layers.0.attention.v_proj": {"out_features": 9, "rank": 4},
        "layers.0.attention.o_proj": {"in_features": 9},
    },
    "removed feed-forward": {"layers.0.mlp.fc1": {"out_features": 0}, "layers.0.mlp.fc2": {"in_features": 0}},
    "removed attention": {
        **{f"layers.1.attention.{letter}_proj": {"out_features": 0} for letter in "qkv"},
        "layers.1.attention.o_proj": {"in_features": 0},
    },
    "all at once": {
        "layers.0.attention": {"qk_rank": 6},
        "layers.0.attention.v_proj": {"out_features": 20, "rank": 8},
        "layers.0.attention.o_proj": {"in_features": 20, "rank": 9},
        "layers.0.mlp.fc1": {"out_features": 40, "rank": 7},
        "layers.0.mlp.fc2": {"in_features": 40},
        "layers.1.attention.v_proj": {"rank": 3},
        "layers.1.mlp.fc1": {"rank": 8},
    },
}
"""Shapes by what they are."""
every_form = pytest.mark.parametrize("form", FORMS)


def compression(ranks=RANKS, prefix=""):
    return {"layers": {prefix + name: {"rank": rank} for name, rank in ranks.items()}}


def factored_config(model_type="vit", ranks=RANKS, prefix="", layers=None, **changes):
    shapes = compression(ranks, prefix) if layers is None else {"layers": layers}
    values = {**TINY, "encoder_stride": 4, "compression": shapes, **changes}
    return factored_config_class(model_type)(**values)


def formed(form, dense=ViTForImageClassification, dtype=torch.float32, **changes):
    """A model of one of the forms."""
    return factored(dense, dtype, layers=FORMS[form], **changes)


def factored(dense=ViTForImageClassification, dtype=torch.float32, **changes):
    model_type = "deit" if dense.__name__.startswith("DeiT") else "vit"
    return seeded(factored_model_class(dense), factored_config(model_type, **changes)).to(dtype)


def outputs(model, pixels):
    with torch.no_grad():
        result = model(pixels[:4].to(model.dtype))
    return [value for value in result.to_tuple() if value is not None]


def assert_same_outputs(first, second, pixels):
    ours, theirs = outputs(first, pixels), outputs(second, pixels)
    assert len(ours) == len(theirs) > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def training_arguments(folder):
    return TrainingArguments(
        output_dir=folder,
        max_steps=2,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


class Labelled(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": index % 5}
