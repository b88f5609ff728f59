"""Single layers with statistics of their own, and what is best for them by dense linear algebra."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_vitcompress.architectures.layers import LayerInfo
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.planning.closed_form import Factorization, factorize
from hf_vitcompress.planning.layer_moments import LayerMoments
from hf_vitcompress.statistics.moments import GradientMoment, Moment
from hf_vitcompress.statistics.statistics import Statistics

METRICS = ("weight", "activation", "row_fisher", "fisher")


IMAGES, TOKENS = 40, 10


CPU = torch.device("cpu")


@dataclass
class Problem:
    """A layer with data, the statistics that calibration would make of it, and the two sides of its metric."""

    layer: LayerInfo
    linear: nn.Linear
    statistics: Statistics
    config: CompressionConfig
    x: Tensor
    g: Tensor

    @property
    def weight(self) -> Tensor:
        return self.linear.weight.detach().double()

    @property
    def centered(self) -> bool:
        return self.config.correct_bias and self.linear.bias is not None

    @property
    def input_side(self) -> Tensor:
        """`M_in`, by hand."""
        x = self.x.double()
        x = x - x.mean(0) if self.centered else x
        moment = x.T @ x / len(x)
        full = {"activation": moment, "fisher": moment}
        return full.get(self.config.metric, torch.eye(x.shape[1], dtype=x.dtype))

    @property
    def output_side(self) -> Tensor:
        """`M_out`, by hand."""
        g = self.g.double()
        moment = g.T @ g / IMAGES
        full = {"fisher": moment, "row_fisher": torch.diag(moment.diagonal())}
        return full.get(self.config.metric, torch.eye(g.shape[1], dtype=g.dtype))

    def damped_sides(self) -> tuple[Tensor, Tensor]:
        """`M_out` and `M_in` with the damping on the narrow side."""
        m_out, m_in = self.output_side, self.input_side
        narrow = m_out if len(m_out) <= len(m_in) else m_in
        damping = self.config.damping * torch.linalg.eigvalsh(narrow)[-1]
        narrow = narrow + damping * torch.eye(len(narrow), dtype=narrow.dtype)
        return (narrow, m_in) if len(m_out) <= len(m_in) else (m_out, narrow)

    def error(self, approximation: Tensor) -> float:
        """`½ tr(M_out (W − Ŵ) M_in (W − Ŵ)ᵀ)`."""
        return objective(self.output_side, self.weight - approximation, self.input_side)

    def factorize(self) -> Factorization:
        return factorize(LayerMoments.of(self.layer, self.linear, self.statistics, self.config), self.config.damping)


def objective(m_out: Tensor, difference: Tensor, m_in: Tensor) -> float:
    return float(((m_out @ difference) * (difference @ m_in)).sum() / 2)


def square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def optimal_errors(m_out: Tensor, weight: Tensor, m_in: Tensor) -> Tensor:
    """The least objective at rank 0 … n, by the singular values of `M_out^½ W M_in^½`."""
    squares = torch.linalg.svdvals(square_root(m_out) @ weight @ square_root(m_in)).square()
    return torch.cat([squares.flip(0).cumsum(0).flip(0) / 2, squares.new_zeros(1)])


def mixed(rows: int, size: int, spectrum: Tensor, generator: torch.Generator) -> Tensor:
    """Random vectors whose second moment has about these eigenvalues."""
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    return torch.randn(rows, size, generator=generator) * spectrum.sqrt() @ rotation.T


def make(
    metric: str,
    shape: tuple[int, int],
    bias: bool = True,
    input_spectrum: Callable[[int], Tensor] = torch.ones,
    output_spectrum: Callable[[int], Tensor] = torch.ones,
    mean: float = 1.0,
    weight_scale: float = 1.0,
    **settings: object,
) -> Problem:
    """A random problem; the statistics are made the way calibration makes them, narrow side only."""
    generator = torch.Generator().manual_seed(3)
    out, size = shape
    config = CompressionConfig(metric=metric, **{"damping": 1e-12, **settings})
    layer = LayerInfo("layer", "fc1", 0, "input", size, out)
    linear = nn.Linear(size, out, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(weight_scale * torch.randn(out, size, generator=generator))
        if bias:
            linear.bias.copy_(torch.randn(out, generator=generator))
    x = mixed(IMAGES * TOKENS, size, input_spectrum(size), generator) + mean * torch.randn(size, generator=generator)
    g = mixed(IMAGES * TOKENS, out, output_spectrum(out), generator)
    statistics = Statistics()
    full, wide_input = metric in ("activation", "fisher"), size > out
    statistics.inputs["input"] = Moment.empty(size, full and not wide_input, CPU)
    statistics.inputs["input"].update(x.clone(), None)
    if full and wide_input:
        statistics.outputs["layer"] = Moment.empty(out, True, CPU)
        statistics.outputs["layer"].update(linear(x).detach(), None)
    if config.needs_gradients:
        carried = g @ linear.weight.detach() if size < out else g
        second = carried.T @ carried if metric == "fisher" else g.square().sum(0)
        statistics.gradients["layer"] = GradientMoment(torch.tensor(float(IMAGES), dtype=torch.float64), second)
    return Problem(layer, linear, statistics, config, x, g)


def approximation(factorization: Factorization, rank: int) -> Tensor:
    up, down = factorization.factors(rank)
    return up.double() @ down.double()
