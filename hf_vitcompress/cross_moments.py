"""What a compressed layer reads against what the dense one had: the moments that residual tensors are solved from."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from .distribution import local_work, sum_in_place
from .errors import CompensationError
from .families import LayerInfo, linear_layer
from .observation import add_product
from .taps import BlockStream, Tap


@dataclass
class CrossMoments:
    """Second moments of a compressed layer's input `x̂` with itself and with what the dense layer had, centred.

    Attributes:
        input_mean: E[x̂] (in,) float64.
        covariance: of x̂, (in, in) float64.
        target_mean: (t,) float64; the target is `W x` (t = out), or `x` (t = in) for a layer with in < out.
        cross: covariance of the target and x̂, (t, in) float64.
    """

    input_mean: Tensor
    covariance: Tensor
    target_mean: Tensor
    cross: Tensor

    def about_zero(self) -> "CrossMoments":
        """The same moments, uncentred."""
        return CrossMoments(
            self.input_mean,
            self.covariance + torch.outer(self.input_mean, self.input_mean),
            self.target_mean,
            self.cross + torch.outer(self.target_mean, self.input_mean),
        )


def collect_cross_moments(
    layers: Sequence[LayerInfo],
    models: tuple[PreTrainedModel, PreTrainedModel],
    blocks: tuple[nn.Module, nn.Module],
    streams: tuple[BlockStream, BlockStream],
    mean: Tensor,
    accelerator: Accelerator,
) -> dict[str, CrossMoments]:
    """By layer name, from one pass of the dense and the compressed block over their inputs, of all processes.

    Args:
        layers: of the block, reading the same input.
        models, blocks, streams: the dense model's first, the compressed one's second.
        mean: of the dense layers' input (in,), about which sums are taken, so that a large mean costs no precision.

    Raises:
        CompensationError: something is not finite.
    """
    dense, student = models
    first_layer = layers[0].name
    linears = {layer.name: linear_layer(dense, layer.name) for layer in layers}
    narrow = {layer.name: layer.in_features < layer.out_features for layer in layers}
    origins = {
        name: mean if narrow[name] else linear.weight.detach().double() @ mean for name, linear in linears.items()
    }
    biases = {
        name: 0.0 if narrow[name] or linear.bias is None else linear.bias.detach().double()
        for name, linear in linears.items()
    }
    n, device = layers[0].in_features, student.device
    count = torch.zeros(1, dtype=torch.float64, device=device)
    first, second = torch.zeros(n, device=device), torch.zeros(n, n, device=device)
    target_first = {name: torch.zeros(len(origin), device=device) for name, origin in origins.items()}
    cross = {name: torch.zeros(len(origin), n, device=device) for name, origin in origins.items()}

    dense_tap, student_tap = Tap(dense, linears), Tap(student, [first_layer])
    with local_work(accelerator, "Compensation"), dense_tap, student_tap:
        for index in range(len(streams[0].hidden)):
            for block, stream in zip(blocks, streams, strict=True):
                stream.run(block, index)
            computed_in = student_tap.outputs[first_layer].dtype
            x_hat = _tokens(student_tap.inputs[first_layer], computed_in) - mean.float()
            count += len(x_hat)
            first += x_hat.sum(0)
            add_product(second, x_hat, x_hat, computed_in)
            for name, origin in origins.items():
                seen = dense_tap.inputs[name] if narrow[name] else dense_tap.outputs[name]
                target = _tokens(seen, computed_in) - (origin + biases[name]).float()
                target_first[name] += target.sum(0)
                add_product(cross[name], target, x_hat, computed_in)
    sum_in_place(accelerator, [count, first, second, *target_first.values(), *cross.values()])
    shift = first.double() / count
    covariance = second.double() / count - torch.outer(shift, shift)
    if not all(torch.isfinite(moment).all() for moment in (covariance, *cross.values())):
        raise CompensationError(
            f"What flows into {first_layer!r} in the compressed model, or through it in the dense one, holds NaN or "
            "infinite values. Check the model's weights and the images, or compensate with "
            'precision="float32".'
        )
    result = {}
    for name, origin in origins.items():
        target_shift = target_first[name].double() / count
        result[name] = CrossMoments(
            input_mean=mean + shift,
            covariance=(covariance + covariance.T) / 2,
            target_mean=origin + target_shift,
            cross=cross[name].double() / count - torch.outer(target_shift, shift),
        )
    return result


def _tokens(activations: Tensor, computed_in: torch.dtype) -> Tensor:
    """(…, d) → (tokens, d) float32, rounded as the layer rounds them."""
    return activations.flatten(0, -2).to(computed_in).float()
