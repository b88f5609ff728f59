"""Which hidden features of a feed-forward may be removed: those that stay by themselves until they are read."""

from torch import nn

from ..configuration_factored import path_of

ELEMENTWISE = {
    "timm.layers.mlp.GluMlp",
    "timm.layers.mlp.Mlp",
    "timm.layers.mlp.SwiGLU",
    "timm.models.tiny_vit.NormMlp",
    "timm.models.vitamin.GeGluMlp",
}
"""Classes of timm in which nothing but an activation, a gate and a `norm` stand between the layers."""

NORM_BEFORE = {"timm.models.tiny_vit.NormMlp", "timm.models.vitamin.GeGluMlp"}
"""Those of them whose `norm` stands before the first layer."""


def may_lose_features(feed_forward: nn.Module) -> bool:
    """Whether any of its hidden features can go without a change to the others; so in every family of transformers."""
    path = path_of(type(feed_forward))
    if not path.startswith("timm."):
        return True
    norm = getattr(feed_forward, "norm", None)
    plain = norm is None or isinstance(norm, nn.Identity) or path in NORM_BEFORE
    return path in ELEMENTWISE and plain
