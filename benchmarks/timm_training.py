"""Families of timm that compute something else than a plain ViT, trained for some minutes from its weights.

No weights of these families are at hand. Each is built at the sizes of a trained ViT, takes what it has a place for of
the weights, and is trained on labelled images until it classifies well again.
"""

import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from common import environment
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_vitcompress import ViTCompressor, convert_to_timm
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.evaluation.evaluation import model_outputs, predictions
from hf_vitcompress.images.images import Batch, ImageSource

QUICK_GELU = 1.702
"""GELU is about x · sigmoid(1.702 x)."""

BATCH = 32


@dataclass(frozen=True)
class Family:
    """A family of timm.

    Attributes:
        architecture: timm's name.
        differs: from a plain ViT, in words.
        arguments: of `timm.create_model`, beyond those that all have.
        epochs, learning_rate: of its training.
    """

    architecture: str
    differs: str
    arguments: Mapping[str, Any]
    epochs: float
    learning_rate: float


FAMILIES = {
    "ROPE-ViT": Family(
        "vit_small_patch16_rope_ape_224",
        "rotary positions beside the learned ones, layer scales",
        {"init_values": 1.0},
        epochs=2,
        learning_rate=5e-5,
    ),
    "EVA-02": Family(
        "eva02_small_patch14_224",
        "rotary positions beside the learned ones, no bias of the keys, gated feed-forwards, in which what the gate "
        "multiplies began nearly constant",
        {},
        epochs=0.5,
        learning_rate=2e-5,
    ),
}


def trained(
    family: Family, vit: Subject, images: ImageSource, test: Iterable[Batch], seed: int
) -> tuple[Subject, dict[str, Any]]:
    """A model of the family, trained on the images, and how. `test` says what it knew before."""
    set_seed(seed)
    subject = ViTCompressor(progress=False).open(taking_over(family, vit.model))
    subject = Subject.alone(subject.model, vit.processor)
    subject.model.set_attn_implementation("eager")  # the faster one for backward passes on a CPU
    before, start = top1(subject, test), time.perf_counter()
    train(subject.model, examples(images, vit.processor), family, seed)
    return subject, {
        "architecture": family.architecture,
        "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
        "top1_before": before,
        "images": len(images),
        "epochs": family.epochs,
        "learning_rate": family.learning_rate,
        "seconds": time.perf_counter() - start,
        "environment": environment(),
    }


def taking_over(family: Family, vit: PreTrainedModel) -> nn.Module:
    """A module of the family with the weights of a `ViTForImageClassification`, as far as they fit."""
    config = vit.config
    module = timm.create_model(
        family.architecture,
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        num_classes=config.num_labels,
        global_pool="token",
        **family.arguments,
    )
    state = module.state_dict()
    for name, tensor in convert_to_timm(vit).state_dict().items():
        take_over(state, name, tensor)
    module.load_state_dict(state)
    return module


def take_over(state: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Put a tensor of a plain ViT into the state dict of another family."""
    if name == "pos_embed" and state[name].shape[1] < tensor.shape[1]:
        state["cls_token"] = state["cls_token"] + tensor[:, :1]  # its position has no tensor of its own
        state[name] = tensor[:, 1:]
    elif name.endswith("qkv.bias") and name not in state:
        state[name.replace("qkv.bias", "q_bias")], _, state[name.replace("qkv.bias", "v_bias")] = tensor.chunk(3)
    elif "mlp.fc1" in name and len(state[name]) == 2 * len(tensor):
        take_over_gate(state, name, tensor)
    else:
        assert state[name].shape == tensor.shape, name
        state[name] = tensor


def take_over_gate(state: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Gate with what was the activation. The features that it multiplies are a constant, and a third of random ones."""
    features = state[name][len(tensor) :] / 3
    state[name] = torch.cat((tensor * QUICK_GELU, features + 1 / QUICK_GELU if name.endswith("bias") else features))


def top1(subject: Subject, batches: Iterable[Batch]) -> float:
    outputs, labels = model_outputs(subject, batches)
    assert labels is not None
    return (predictions(outputs) == labels).double().mean().item()


def examples(images: ImageSource, processor: Any) -> list[dict[str, Tensor]]:
    found = []
    for batch in images.batches(processor, BATCH):
        assert batch.labels is not None
        found += [{"pixel_values": p, "labels": n} for p, n in zip(batch.pixel_values, batch.labels, strict=True)]
    return found


def train(model: PreTrainedModel, images: list[dict[str, Tensor]], family: Family, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=family.epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=family.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            seed=seed,
            logging_steps=10,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=images).train()
    model.eval()
