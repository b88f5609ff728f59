"""Swin and Swin V2."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    Swinv2Config,
    Swinv2ForImageClassification,
    Swinv2Model,
)

from ..reading import one_number
from ..rule import Need, Rule
from ..state import Names, State

STAGE = "{body}encoder.layers.{i}."
BLOCK = STAGE + "blocks.{j}."
BASE: Names = {
    "patch_embed.proj": "{body}embeddings.patch_embeddings.projection",
    "patch_embed.norm": "{body}embeddings.norm",
    "layers.{i}.downsample.norm": STAGE + "downsample.norm",
    "layers.{i}.downsample.reduction": STAGE + "downsample.reduction",
    "layers.{i}.blocks.{j}.norm1": BLOCK + "layernorm_before",
    "layers.{i}.blocks.{j}.norm2": BLOCK + "layernorm_after",
    "norm": "{body}layernorm",
    "head.fc": "classifier",
}


@dataclass(frozen=True)
class Swin:
    """A Swin transformer of timm.

    Attributes:
        width: features of the first stage.
        depths: blocks of each stage.
        heads: of each stage.
        windows: height and width of the windows of each stage.
        grids: tokens of each stage, in height and width.
        trained_windows: of each stage, those of the training before, for Swin V2; 0 where there were none.
        ratio: width inside the feed-forward over that of the stage.
        image: height and width in pixels.
        patch: the same of a patch.
        classes: 0 without a head.
        pool: timm's `global_pool`.
        biased: whether queries and values have biases.
        oddities: what no rule holds for, as nouns.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int], ...]
    trained_windows: tuple[int, ...]
    ratio: float
    eps: float
    channels: int
    image: tuple[int, int]
    patch: tuple[int, int]
    classes: int
    pool: str
    biased: bool
    oddities: tuple[str, ...]

    @property
    def window(self) -> int:
        """Side of the largest windows."""
        return max(side for window in self.windows for side in window)


def read_swin(module: Any) -> Swin:
    """Of a `SwinTransformer` or `SwinTransformerV2` of timm."""
    stages = list(module.layers)
    blocks = [stage.blocks[0] for stage in stages]
    attention = blocks[0].attn
    head = module.head.fc
    return Swin(
        width=module.patch_embed.proj.out_channels,
        depths=tuple(len(stage.blocks) for stage in stages),
        heads=tuple(block.attn.num_heads for block in blocks),
        windows=tuple(tuple(block.window_size) for block in blocks),
        grids=tuple(tuple(block.input_resolution) for block in blocks),
        trained_windows=tuple(int(getattr(block.attn, "pretrained_window_size", (0,))[0]) for block in blocks),
        ratio=blocks[0].mlp.fc1.out_features / blocks[0].mlp.fc1.in_features,
        eps=module.norm.eps,
        channels=module.patch_embed.proj.in_channels,
        image=tuple(module.patch_embed.img_size),
        patch=tuple(module.patch_embed.patch_size),
        classes=head.out_features if isinstance(head, nn.Linear) else 0,
        pool=module.head.global_pool.pool_type or "",
        biased=getattr(attention, "q_bias", None) is not None or attention.qkv.bias is not None,
        oddities=tuple(_oddities(module)),
    )


def _oddities(module: Any) -> list[str]:
    found = []
    blocks = [block for stage in module.layers for block in stage.blocks]
    if isinstance(module.patch_embed.norm, nn.Identity):
        found.append("a patch embedding without normalization")
    if any(type(block.mlp.act).__name__ != "GELU" for block in blocks):
        found.append("another activation than GELU")
    if any(block.attn.proj.in_features != block.attn.qkv.in_features for block in blocks):
        found.append("heads that are wider or narrower than the stage")
    if not isinstance(module.head.fc, nn.Linear | nn.Identity):
        found.append(f"a head like {type(module.head.fc).__name__}")
    norms = {part.eps for part in module.modules() if isinstance(part, nn.LayerNorm)}
    if norms != {1e-5}:
        found.append("norms with another eps than 1e-5")
    return found


def _config(swin: Swin, labels: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": one_number(swin.image),
        "patch_size": one_number(swin.patch),
        "num_channels": swin.channels,
        "embed_dim": swin.width,
        "depths": list(swin.depths),
        "num_heads": list(swin.heads),
        "window_size": swin.window,
        "mlp_ratio": swin.ratio,
        "qkv_bias": swin.biased,
        "layer_norm_eps": swin.eps,
        "drop_path_rate": 0.0,
        **labels,
    }


def _merging_last(state: State, swin: Swin) -> None:
    """In timm a stage begins by merging patches, in transformers the one before it ends with that."""
    for name in [name for name in state if ".downsample." in name]:
        number, rest = re.fullmatch(r"layers\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
        state[f"layers.{int(number) - 1}.{rest}"] = state.pop(name)


def _remarks(swin: Swin) -> list[str]:
    if swin.classes or swin.pool == "avg":
        return []
    return [f"The converted model's pooler_output is the mean of the tokens, not timm's global_pool={swin.pool!r}."]


MEAN: Need[Swin] = Need(
    lambda swin: swin.classes == 0 or swin.pool == "avg", "a classifier that does not read the mean of the tokens"
)
WINDOW: Need[Swin] = Need(
    lambda swin: all(
        window == tuple(min(swin.window, side) for side in grid)
        for window, grid in zip(swin.windows, swin.grids, strict=True)
    ),
    "windows of several sizes",
)
SQUARE: Need[Swin] = Need(lambda swin: all(height == width for height, width in swin.windows), "oblong windows")
SAME: Need[Swin] = Need(lambda swin: len(set(swin.windows)) == 1, "windows that are smaller in some stages")

SWIN = Rule(
    title="Swin",
    needs=(
        MEAN,
        WINDOW,
        SQUARE,
        SAME,
    ),
    config=lambda swin, labels: SwinConfig(**_config(swin, labels)),
    model=lambda swin: SwinForImageClassification if swin.classes else SwinModel,
    names={
        **BASE,
        "layers.{i}.blocks.{j}.attn.qkv": tuple(f"{BLOCK}attention.{name}_proj" for name in "qkv"),
        "layers.{i}.blocks.{j}.attn.proj": BLOCK + "attention.o_proj",
        "layers.{i}.blocks.{j}.attn.relative_position_bias_table": (
            BLOCK + "attention.relative_position_bias.relative_position_bias_table"
        ),
        "layers.{i}.blocks.{j}.mlp.fc1": BLOCK + "mlp.fc1",
        "layers.{i}.blocks.{j}.mlp.fc2": BLOCK + "mlp.fc2",
    },
    prepare=_merging_last,
    remarks=_remarks,
)

SWIN_V2 = Rule(
    title="Swin V2",
    needs=(MEAN, WINDOW, SQUARE),
    config=lambda swin, labels: Swinv2Config(
        **_config(swin, labels), pretrained_window_sizes=list(swin.trained_windows)
    ),
    model=lambda swin: Swinv2ForImageClassification if swin.classes else Swinv2Model,
    names={
        **BASE,
        "layers.{i}.blocks.{j}.attn.logit_scale": BLOCK + "attention.self.logit_scale",
        "layers.{i}.blocks.{j}.attn.cpb_mlp.0": BLOCK + "attention.self.continuous_position_bias_mlp.0",
        "layers.{i}.blocks.{j}.attn.cpb_mlp.2": BLOCK + "attention.self.continuous_position_bias_mlp.2",
        "layers.{i}.blocks.{j}.attn.qkv": tuple(f"{BLOCK}attention.self.{name}" for name in ("query", "key", "value")),
        "layers.{i}.blocks.{j}.attn.q_bias": BLOCK + "attention.self.query.bias",
        "layers.{i}.blocks.{j}.attn.v_bias": BLOCK + "attention.self.value.bias",
        "layers.{i}.blocks.{j}.attn.proj": BLOCK + "attention.output.dense",
        "layers.{i}.blocks.{j}.mlp.fc1": BLOCK + "intermediate.dense",
        "layers.{i}.blocks.{j}.mlp.fc2": BLOCK + "output.dense",
    },
    prepare=_merging_last,
    remarks=_remarks,
)
