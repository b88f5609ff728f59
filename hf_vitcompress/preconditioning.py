"""AdamW in the eigenbases of the curvature that calibration has measured anyway.

The Kronecker-factored curvature of a layer is `C ⊗ G`, the moments of its inputs and of its output gradients (K-FAC,
Martens & Grosse, arXiv 1503.05671). Adam divides each entry of a gradient by its own root mean square; in the
eigenbasis of the curvature, where the entries are independent, that approximates the natural gradient without any
damping to choose (SOAP, Vyas et al., arXiv 2409.11321). SOAP follows the bases as training goes on; here the weights
move little, and the bases of the dense model stay.

Of the two factors of a layer, `down (r, in)` is rotated by the eigenvectors of `C` and `up (out, r)` by those of `G`,
where these were collected; their other sides are ordered by the closed form already and need none.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .families import LayerInfo
from .modeling_factored import FactoredLinear
from .modes import fast_products
from .statistics import Statistics

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
            state["step"] = torch.zeros(())
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
    """Rotations of the student's factors, from whatever full moments the statistics hold."""
    of_inputs: dict[str, Tensor | None] = {}
    rotations: dict[Tensor, Rotation] = {}
    for layer in layers:
        module = student.get_submodule(layer.name)
        if not isinstance(module, FactoredLinear):
            continue
        if layer.input_name not in of_inputs:
            moment = statistics.inputs[layer.input_name]
            of_inputs[layer.input_name] = _eigenvectors(moment.moment) if _is_full(moment.second) else None
        rotations[module.down.weight] = (None, of_inputs[layer.input_name])
        gradient = statistics.gradients.get(layer.name)
        if gradient is not None and _is_full(gradient.second) and layer.out_features <= layer.in_features:
            rotations[module.up.weight] = (_eigenvectors(gradient.moment), None)
    return rotations


def _is_full(second: Tensor | None) -> bool:
    return second is not None and second.dim() == 2


def _eigenvectors(moment: Tensor) -> Tensor:
    return torch.linalg.eigh(moment)[1].float()
