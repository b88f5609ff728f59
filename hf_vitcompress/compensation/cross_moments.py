"""What a compressed layer reads against what the dense one had: the moments that residual tensors are solved from."""

import contextlib
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.layers import LayerInfo, linear_layer
from ..errors import CompensationError
from ..runtime.distributed import from_owner, local_work, sum_in_place
from ..runtime.hooks import Capture, Reached
from ..statistics.accumulators import add_product
from ..tokens_factored import of_every_token
from .block_inputs import BlockInputs


@dataclass
class CrossMoments:
    """Second moments of the input `x̂` of compressed layers with itself and with what the dense ones had, centred.

    Attributes:
        input_mean: E[x̂] (in',) float64.
        covariance: of x̂, (in', in') float64.
        target_mean: (t,) float64; the target is the dense input `x` (t = in), or `W x` (t = out) of a layer with
            out < in.
        cross: covariance of the target and x̂, (t, in') float64.
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

    def through(self, weight: Tensor) -> "CrossMoments":
        """With `weight x` as the target."""
        return CrossMoments(self.input_mean, self.covariance, weight @ self.target_mean, weight @ self.cross)


def targets_output(layer: LayerInfo) -> bool:
    """Whether the target is the layer's output, which is smaller, and not its input."""
    # The outputs of fc1 and v may be pruned.
    return layer.out_features < layer.in_features and layer.role in ("o", "fc2")


def collect_cross_moments(
    layer: LayerInfo,
    reader: str,
    models: tuple[PreTrainedModel, PreTrainedModel],
    blocks: tuple[nn.Module, nn.Module],
    streams: tuple[BlockInputs, BlockInputs],
    accelerator: Accelerator,
) -> CrossMoments:
    """From one pass of the dense and the compressed block, as far as the layer, over their inputs, of all processes.

    Args:
        layer: one of those of the block that read the same input.
        reader: the compressed model's module that reads it there.
        models, blocks, streams: the dense model's first, the compressed one's second.

    Raises:
        CompensationError: something is not finite.
    """
    dense, student = models
    linear = linear_layer(dense, layer.name)
    bias = linear.bias.detach().float() if targets_output(layer) and linear.bias is not None else 0.0
    dense_tap, student_tap = Capture(dense, [layer.name], ends=True), Capture(student, [reader], ends=True)

    def batch(index: int) -> tuple[Tensor, Tensor, torch.dtype]:
        """x̂ and the target of one batch (tokens, ·), float32."""
        for block, stream in zip(blocks, streams, strict=True):
            with contextlib.suppress(Reached):
                stream.run(block, index)
        computed_in = dense_tap.outputs[layer.name].dtype
        seen = (dense_tap.outputs if targets_output(layer) else dense_tap.inputs)[layer.name]
        mask = streams[0].calls[index].mask
        # Each token against the merged one that it is in, so that this one counts as often as its mean.
        x_hat = of_every_token(student_tap.inputs[reader], streams[1].calls[index].hidden)
        return (
            _tokens(x_hat, computed_in, mask),
            _tokens(seen, computed_in, mask) - bias,
            computed_in,
        )

    n, device = int(student.get_submodule(reader).in_features), student.device  # type: ignore[arg-type]
    t = layer.out_features if targets_output(layer) else layer.in_features
    # About a point near the mean, the same for all processes, so that a large mean costs no precision. A process may
    # have no images.
    shifts = [torch.zeros(size, dtype=torch.float32, device=device) for size in (n, t)]
    with local_work(accelerator, "Compensation"), dense_tap, student_tap:
        first_batch = batch(0) if streams[0].calls else None
        if first_batch is not None:
            shifts = [part.mean(0) for part in first_batch[:2]]
    shifts = [from_owner(accelerator, shift, 0) for shift in shifts]
    sums = [torch.zeros(size, dtype=torch.float32, device=device) for size in (n, t)]
    second, cross = (torch.zeros(rows, n, dtype=torch.float32, device=device) for rows in (n, t))
    count = torch.zeros(1, dtype=torch.float64, device=device)
    with local_work(accelerator, "Compensation"), dense_tap, student_tap:
        for index in range(len(streams[0].calls)):
            x_hat, target, computed_in = first_batch if index == 0 and first_batch is not None else batch(index)
            x_hat, target = x_hat - shifts[0], target - shifts[1]
            count += len(x_hat)
            sums[0] += x_hat.sum(0)
            sums[1] += target.sum(0)
            add_product(second, x_hat, x_hat, computed_in)
            add_product(cross, target, x_hat, computed_in)
    sum_in_place(accelerator, [count, *sums, second, cross])
    first, target_first = (total.double() / count for total in sums)
    covariance = second.double() / count - torch.outer(first, first)
    if not (torch.isfinite(covariance).all() and torch.isfinite(cross).all()):
        raise CompensationError(
            f"What flows into {reader!r} in the compressed model, or through {layer.name!r} in the dense one, holds "
            "NaN or infinite values. Check the model's weights and the images, or compensate with "
            'precision="float32".'
        )
    return CrossMoments(
        input_mean=shifts[0].double() + first,
        covariance=(covariance + covariance.T) / 2,
        target_mean=shifts[1].double() + target_first,
        cross=cross.double() / count - torch.outer(target_first, first),
    )


def _tokens(activations: Tensor, computed_in: torch.dtype, mask: Tensor | None) -> Tensor:
    """(…, d) → (tokens, d) float32, rounded as the layer rounds them; without padding, which says nothing."""
    tokens = activations.flatten(0, -2).to(computed_in).float()
    return tokens if mask is None or mask.numel() != len(tokens) else tokens[mask.flatten().bool()]
