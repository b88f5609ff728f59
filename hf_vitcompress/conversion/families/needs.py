"""What vision transformers have to be for one rule or another, with what a class cannot express otherwise."""

from ..reading import Vit
from ..rule import Need

ACTIVATION = ("gelu", "gelu_pytorch_tanh", "quick_gelu", "silu", "relu")

CLASS_TOKEN: Need[Vit] = Need(lambda vit: vit.class_token, "the lack of a class token")
NO_CLASS_TOKEN: Need[Vit] = Need(lambda vit: not vit.class_token, "a class token")
NO_REGISTERS: Need[Vit] = Need(lambda vit: vit.registers == 0, "register tokens")
POSITIONS: Need[Vit] = Need(lambda vit: vit.absolute and not vit.rope, "other positions than one vector for each patch")
NO_RELATIVE: Need[Vit] = Need(lambda vit: vit.relative == "none", "biases for relative positions")
NO_NORM_BEFORE: Need[Vit] = Need(lambda vit: not vit.before, "normalization before the first block (pre_norm)")
NORM_TOKENS: Need[Vit] = Need(
    lambda vit: vit.norm == "tokens", "a feature that is normalized after the pooling, or not at all (fc_norm)"
)
NORM_POOLED: Need[Vit] = Need(lambda vit: vit.norm == "pooled", "normalization of the tokens before the pooling")
PLAIN_MLP: Need[Vit] = Need(lambda vit: not vit.gated, "a gated feed-forward")
KNOWN_ACTIVATION: Need[Vit] = Need(lambda vit: vit.activation in ACTIVATION, "an activation like {traits.activation}")
NO_SCALES: Need[Vit] = Need(lambda vit: not vit.scales, "layer scales")
SQUARE: Need[Vit] = Need(
    lambda vit: vit.image[0] == vit.image[1] and vit.patch[0] == vit.patch[1], "images or patches that are not square"
)
HEADLESS: Need[Vit] = Need(lambda vit: vit.classes == 0, "a classifier")


def classifies_by(*pools: str) -> Need[Vit]:
    """A classifier, if there is one, that reads a feature pooled in one of these ways."""
    return Need(
        lambda vit: vit.classes == 0 or vit.pool in pools,
        "a classifier that reads a feature pooled by global_pool={traits.pool!r}",
    )


def pooling_is_left(vit: Vit) -> list[str]:
    """A sentence where timm's model pools tokens, and that of transformers gives these only."""
    first = vit.class_token + vit.registers
    if vit.classes or vit.pool == "token":
        return []
    if vit.pool == "avg":
        mean = f"last_hidden_state[:, {first}:].mean(1)" if first else "last_hidden_state.mean(1)"
        return [f"The feature that timm's model returns is {mean}; the converted model returns the tokens."]
    return [f"The converted model returns the tokens; timm's global_pool={vit.pool!r} of them is left to you."]


def other_sizes(vit: Vit) -> list[str]:
    """A sentence where timm's model takes images of any size."""
    if not vit.dynamic:
        return []
    return [
        "timm's model takes images of other sizes as they come (dynamic_img_size). The converted one may need "
        "interpolate_pos_encoding=True for that, and resamples positions in a slightly different way."
    ]


def remarks(vit: Vit) -> list[str]:
    """Both."""
    return [*pooling_is_left(vit), *other_sizes(vit)]
