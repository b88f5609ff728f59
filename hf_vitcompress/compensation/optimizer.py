"""AdamW in the eigenbases of the curvature that calibration has measured anyway.

The Kronecker-factored curvature of a layer is `C ⊗ G`, the moments of its inputs and of its output gradients (K-FAC,
Martens & Grosse, arXiv 1503.05671). Adam divides each entry of a gradient by its own root mean square; in the
eigenbasis of the curvature, where the entries are independent, that approximates the natural gradient without any
damping to choose (SOAP, Vyas et al., arXiv 2409.11321). SOAP follows the bases as training goes on; here the weights
move little, and the bases of the dense model stay.

Of the two factors of a layer, `down (r, in)` is rotated by the eigenvectors of `C` and `up (out, r)` by those of `G`,
where these were collected; their other sides are ordered by the closed form already and need none. A layer that was
pruned and not factored is rotated on the sides it still has whole.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.layers import LayerInfo
from ..layers_factored import Constant, FactoredLinear, Removed
from ..modeling_factored import compressed_modules
from ..runtime.devices import fast_products
from ..statistics.statistics import Statistics

Rotation = tuple[Tensor | None, Tensor | None]
"""Orthogonal matrices (out, out) and (in, in) of a weight (out, in), `None` where it is not rotated."""


class RotatedAdamW(torch.optim.Optimizer):
    """AdamW (without weight decay) on `Lᵀ g R` instead of the gradient `g`.

    Args:
        rotations: by parameter; the others are not rotated.
        precision: of the rotations; the direction of a step needs no more than bfloat16.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rotations: Mapping[Tensor, Rotation],
        lr: float,
        precision: str = "float32",
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self.rotations = dict(rotations)
        self.fast = precision == "bfloat16"

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    with fast_products(parameter.device, self.fast):
                        self._update(parameter, parameter.grad, group)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        left, right = self.rotations.get(parameter, (None, None))
        gradient = _rotated(gradient, None if left is None else left.T, right)
        mean, square, count = state["exp_avg"], state["exp_avg_sq"], float(state["step"])
        mean.lerp_(gradient, 1 - beta1)
        square.lerp_(gradient.square(), 1 - beta2)
        update = mean / (square / (1 - beta2**count)).sqrt().add_(group["eps"])
        update = _rotated(update, left, None if right is None else right.T)
        parameter.sub_(update, alpha=group["lr"] / (1 - beta1**count))


def _rotated(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """`left matrix right`."""
    matrix = matrix if left is None else left @ matrix
    return matrix if right is None else matrix @ right


def eigenbases(student: PreTrainedModel, layers: Iterable[LayerInfo], statistics: Statistics) -> dict[Tensor, Rotation]:
    """Rotations of the student's compressed weights, from whatever full moments the statistics hold.

    Only on the narrow side of a layer, and only where the weight still has the features of the dense one.
    """
    compressed = set(compressed_modules(student))
    bases: dict[str, Tensor | None] = {}
    rotations: dict[Tensor, Rotation] = {}

    def basis(kind: str, name: str, layer: LayerInfo) -> Tensor | None:
        moment = getattr(statistics, kind).get(name)
        if moment is None or moment.second is None or moment.second.shape != (layer.full_rank,) * 2:
            return None
        if f"{kind}/{name}" not in bases:
            bases[f"{kind}/{name}"] = _eigenvectors(moment.moment)
        return bases[f"{kind}/{name}"]

    for layer in layers:
        if layer.name not in compressed:
            continue
        module = student.get_submodule(layer.name)
        if isinstance(module, Removed | Constant):
            continue
        inputs, outputs = basis("inputs", layer.input_name, layer), basis("gradients", layer.name, layer)
        if isinstance(module, FactoredLinear):
            rotations[module.down.weight] = _fitting(module.down.weight, None, inputs)
            rotations[module.up.weight] = _fitting(module.up.weight, outputs, None)
        elif f"{layer.parent}.qk_down" in compressed and layer.role in ("q", "k"):
            down = student.get_submodule(f"{layer.parent}.qk_down").weight
            assert isinstance(down, Tensor)
            assert isinstance(module.weight, Tensor)
            rotations[down] = _fitting(down, None, inputs)
            rotations[module.weight] = _fitting(module.weight, outputs, None)
        else:
            assert isinstance(module.weight, Tensor)
            rotations[module.weight] = _fitting(module.weight, outputs, inputs)
    return rotations


def _fitting(weight: Tensor, left: Tensor | None, right: Tensor | None) -> Rotation:
    """Without those of other dimensions than the weight has."""
    rows, columns = weight.shape
    left = left if left is not None and len(left) == rows else None
    return left, right if right is not None and len(right) == columns else None


def _eigenvectors(moment: Tensor) -> Tensor:
    return torch.linalg.eigh(moment)[1].float()
