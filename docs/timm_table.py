"""The table of timm's families in `docs/models.md`: small models with random weights, compressed, saved and loaded.

`python docs/timm_table.py docs/models.md` renews the table between the two marks in that file. It needs timm, and takes
some minutes.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.inputs import image_shape
from hf_vitcompress.architectures.layers import by_block, feature_pairs, find_layers, has_standard_attention
from hf_vitcompress.architectures.values import value_pairs
from hf_vitcompress.model.making import MAKING
from hf_vitcompress.model.subject import open_subject
from hf_vitcompress.model.timm import split_form, wrapped
from hf_vitcompress.report.tables import markdown_table

BEGIN, END = "<!-- timm: begin -->", "<!-- timm: end -->"
HEADER = ("family", "for example", "layers", "together", "share of parameters", "kept at 0.5", "difference")
ROLES = ("q", "k", "v", "qkv", "kv", "o", "gate", "fc1", "fc2")


class Row(NamedTuple):
    """A family of timm.

    Attributes:
        title: name for people.
        architecture: name in timm.
        arguments: of `timm.create_model`, which make the model small.
    """

    title: str
    architecture: str
    arguments: dict[str, Any]


_SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 16, "patch_size": 4}
_SWIN = {"embed_dim": 32, "depths": [2, 2], "num_heads": [1, 2], "img_size": 32, "window_size": 4}
_HIERA = {"embed_dim": 16, "num_heads": 1, "stages": [1, 1, 2, 1]}
_STAGES = {"embed_dims": [16, 32, 32, 32], "num_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}

_PYRAMID = {"embed_dims": [32, 64, 128, 128], "num_heads": [1, 2, 4, 4], "depths": [1, 1, 2, 1]}

ROWS = [
    Row("ViT", "vit_tiny_patch16_224", _SMALL),
    Row("DeiT, distilled", "deit_tiny_distilled_patch16_224", _SMALL),
    Row("DeiT III", "deit3_small_patch16_224", _SMALL),
    Row("DINOv2, registers", "vit_small_patch14_reg4_dinov2", _SMALL),
    Row("DINOv2 giant", "vit_giant_patch14_dinov2", {**_SMALL, "embed_dim": 96}),
    Row("DINOv3", "vit_small_patch16_dinov3", _SMALL),
    Row("SigLIP", "vit_base_patch16_siglip_224", _SMALL),
    Row("CLIP", "vit_base_patch16_clip_224", _SMALL),
    Row("Perception Encoder", "vit_pe_core_tiny_patch16_384", _SMALL),
    Row("AIMv2", "aimv2_large_patch14_224", _SMALL),
    Row("rotary ViT", "vit_base_patch16_rope_224", _SMALL),
    Row("parallel ViT", "vit_small_patch16_18x2_224", _SMALL),
    Row("parallel scaling ViT", "vit_base_patch16_xp_224", _SMALL),
    Row("differential attention", "vit_dpwee_patch16_reg1_gap_256", _SMALL),
    Row("ViT, relative positions", "vit_relpos_small_patch16_224", _SMALL),
    Row("EVA", "eva_large_patch14_196", _SMALL),
    Row("EVA-02 tiny, small", "eva02_tiny_patch14_224", _SMALL),
    Row("EVA-02 base, large", "eva02_base_patch14_224", _SMALL),
    Row("BEiT v2", "beitv2_base_patch16_224", _SMALL),
    Row("CaiT", "cait_xxs24_224", {**_SMALL, "depth_token_only": 1}),
    Row("XCiT", "xcit_nano_12_p16_224", {**_SMALL, "patch_size": 8, "img_size": 32}),
    Row("ConViT", "convit_tiny", {**_SMALL, "local_up_to_layer": 1}),
    Row("TNT", "tnt_s_legacy_patch16_224", {"depth": 2, "embed_dim": 64, "num_heads_outer": 2, "img_size": 32}),
    Row("SAM", "samvit_base_patch16", {**_SMALL, "global_attn_indexes": [1], "window_size": 2, "neck_chans": 0}),
    Row("Swin", "swin_tiny_patch4_window7_224", _SWIN),
    Row("Swin V2", "swinv2_tiny_window8_256", _SWIN),
    Row("Swin V2 CR", "swinv2_cr_tiny_224", {**_SWIN, "img_size": 64}),
    Row("Hiera", "hiera_tiny_224", {**_HIERA, "img_size": 64}),
    Row("Hiera of SAM 2", "sam2_hiera_tiny", {**_HIERA, "global_att_blocks": [3]}),
    Row("PiT", "pit_ti_224", {"base_dims": [16, 16, 16], "depth": [1, 1, 1], "heads": [1, 2, 2], "img_size": 64}),
    Row("Twins SVT", "twins_svt_small", {**_STAGES, "depths": [1, 2, 2, 1], "img_size": 64}),
    Row("DaViT", "davit_tiny", _STAGES),
    Row("TinyViT", "tiny_vit_5m_224", {**_STAGES, "window_sizes": [4, 4, 4, 4]}),
    Row("EdgeNeXt", "edgenext_xx_small", {}),
    Row("NaFlexViT", "naflexvit_base_patch16_gap", {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 32}),
]


def timm_table() -> str:
    """Markdown, one row for each of `ROWS`."""
    return markdown_table(HEADER, [cells(row) for row in ROWS])


def cells(row: Row) -> tuple[str, ...]:
    """What the table says of one family; the small model is compressed for it."""
    wrapper = small(row)
    whole = full(row)
    share = sum(layer.parameters for layer in find_layers(whole)) / parameters(whole)
    kept, difference = compressed(wrapper)
    return (row.title, f"`{row.architecture}`", *described(wrapper), f"{share:.0%}", f"{kept:.2f}", difference)


def described(wrapper: PreTrainedModel) -> tuple[str, str]:
    """What the layers do that are compressed; and what is compressed together."""
    model = open_subject(wrapper).model
    layers = find_layers(model)
    blocks, found = by_block(layers).values(), {layer.role for layer in layers}
    together = {
        "q k": any({"q", "k"} <= set(own) and has_standard_attention(model, own["q"].parent) for own in blocks),
        "v o": bool(value_pairs(model, layers)),
        "hidden features": bool(feature_pairs(layers, CompressionConfig(keep_ratio=0.5))),
    }
    joint = ", ".join(name for name, holds in together.items() if holds)
    return " ".join(role for role in ROLES if role in found), joint or "none"


def small(row: Row) -> PreTrainedModel:
    """A small model of the family with random weights, none of which is 0 or 1."""
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=row.architecture, model_args=row.arguments, num_labels=10)
    model = TimmWrapperForImageClassification(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def full(row: Row) -> PreTrainedModel:
    """The model that the row names, without storage."""
    with MAKING, torch.device("meta"):
        module = timm.create_model(row.architecture)
    return split_form(wrapped(module))


def parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def compressed(wrapper: PreTrainedModel) -> tuple[float, str]:
    """Share of the parameters that are kept at 0.5, and how far the outputs of the loaded model are from the saved."""
    subject = open_subject(wrapper)
    images = torch.randn(8, *image_shape(subject.model))
    loader = DataLoader([{"pixel_values": image} for image in images], batch_size=4)
    config = CompressionConfig(keep_ratio=0.5, num_images=8, rank_multiple=1, compensation="none")
    compact = ViTCompressor(config, progress=False).compress(wrapper, loader).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        compact.save_pretrained(folder)
        loaded = AutoModelForImageClassification.from_pretrained(folder).eval()
        difference = (loaded(images).logits - compact(images).logits).abs().max().item()
    return parameters(compact) / parameters(wrapper), f"{difference:.0e}" if difference else "0"


def rows_of(text: str) -> list[list[str]]:
    """The cells of the rows of the table in a page."""
    table = text.partition(BEGIN)[2].partition(END)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{timm_table()}{END}{rest.partition(END)[2]}", encoding="utf-8")
