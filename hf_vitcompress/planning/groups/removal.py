"""A module that is removed: of its layers the bias of the last is left, and that takes up the mean of the output.

What is lost is everything else of the output `W a`: with the metric `G` on it, `½ tr(G W C Wᵀ)`, `C` the covariance of
`a`, or its moment about zero where biases are not corrected. That is the error with none of the features (`pruning`).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...architectures.layers import LayerInfo
from ...errors import ConfigError
from ...metrics import METRICS
from ...model.assembly import Shapes
from ..layer_moments import as_matrix
from .base import Choice, LayerGroup, shifted

UNDERESTIMATED = 3.0
"""Factor on predicted errors of removed modules: for so large a step an error of second order is too small.

On a ViT-S/14, where the loss of whole plans is about 3 times the predicted one, that of a module removed alone was 0.5
to 11 times (median 6): at worst about 3 times more."""


def removed_shapes(layers: Sequence[LayerInfo]) -> Shapes:
    """Of a group whose last layer reads what the others make."""
    made = {layer.name: {"out_features": 0} for layer in layers[:-1]}
    return {**made, layers[-1].name: {"in_features": 0}}


def is_removed(shapes: Shapes) -> bool:
    """Whether nothing is left of a group of those shapes."""
    return any(
        size == 0 and type(size) is int and key.endswith("_features")
        for shape in shapes.values()
        for key, size in shape.items()
    )


def left_parameters(group: LayerGroup) -> int:
    """Parameters of a removed group that the dense one has not: a bias of its last layer."""
    last = group.layers[-1]
    return last.out_features if last.role in ("fc2", "o") and group.linears[-1].bias is None else 0


def removed_choice(group: LayerGroup, error: float) -> Choice:
    """What it is to remove the group.

    Args:
        error: predicted with none of the features; about zero where the dense layer has no bias.
    """
    own = group.moments[-1]
    if own.bias is None and group.config.correct_bias and METRICS[group.config.metric].is_loss:
        mean = own.weight @ own.mean
        error = max(0.0, error - float(mean @ as_matrix(own.output_side) @ mean) / 2)
    return Choice.of(left_parameters(group), error * UNDERESTIMATED, removed_shapes(group.layers), ())


def removed_tensors(group: LayerGroup) -> dict[str, Tensor]:
    """The bias that is left."""
    own = group.moments[-1]
    nothing = own.weight.new_zeros(own.layer.out_features)
    bias = shifted(own.bias, own.weight @ own.mean if group.config.correct_bias else nothing)
    return {f"{own.layer.name}.bias": bias}


def check_removed(group: LayerGroup, shapes: Shapes) -> bool:
    """Whether the shapes remove the group, as far as it can be.

    Raises:
        ConfigError: they remove a part of it, or it cannot go.
    """
    if not is_removed(shapes):
        return False
    if group.removal is None:
        raise ConfigError(
            f"The plan removes {group.name!r}, which cannot go: attention of timm runs its own forward pass."
        )
    if shapes != group.removal or any(type(size) is not int for shape in shapes.values() for size in shape.values()):
        raise ConfigError(
            f"The plan removes a part of {group.name!r}, and has to remove all of it: "
            f"{', '.join(f'{name!r} {shape}' for name, shape in group.removal.items())}, and nothing else."
        )
    return True


def check_together(groups: Sequence[LayerGroup], shapes: Mapping[str, Shapes]) -> None:
    """Refuse attention of which only the values, or only the queries and keys, are removed.

    Args:
        shapes: of each group, by its name.

    Raises:
        ConfigError: naming the block.
    """
    removed: dict[str, set[str]] = {}
    for group in groups:
        if group.role in ("qk", "vo") and is_removed(shapes[group.name]):
            removed.setdefault(group.layers[0].block_name, set()).add(group.role)
    for block, roles in removed.items():
        if len(roles) == 1:
            gone, left = ("queries and keys", "values") if "qk" in roles else ("values", "queries and keys")
            raise ConfigError(
                f"The plan removes the {gone} of {block!r} and not its {left}; attention goes as a whole."
            )
