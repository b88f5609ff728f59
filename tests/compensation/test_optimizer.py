"""AdamW in fixed eigenbases: against torch's Adam in rotated coordinates, and the bases against the statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.compensation.optimizer import RotatedAdamW, eigenbases
from hf_vitcompress.layers_factored import FactoredLinear
from hf_vitcompress.modeling_factored import compressed_modules
from hf_vitcompress.statistics.statistics import Statistics
from support.students import LOW_RANK, METHODS

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8}


def orthogonal(size: int, seed: int) -> Tensor:
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix)[0]


def target(seed: int) -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def descend(
    optimizer: torch.optim.Optimizer, weight: nn.Parameter, left: Tensor, right: Tensor, steps: int = 7
) -> None:
    """On a loss whose gradient differs from step to step, of the weight `left weight right`."""
    for step in range(steps):
        optimizer.zero_grad()
        (left @ weight @ right - target(step)).pow(4).sum().backward()
        optimizer.step()


def test_without_rotations_it_is_adamw() -> None:
    ours, theirs = nn.Parameter(target(99)), nn.Parameter(target(99))
    one = torch.eye(5, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    descend(RotatedAdamW([ours], {}, lr=0.01), ours, *one)
    descend(torch.optim.AdamW([theirs], weight_decay=0.0, **OPTIONS), theirs, *one)
    assert torch.allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize(("rotate_left", "rotate_right"), [(True, False), (False, True), (True, True)])
def test_it_is_adam_in_rotated_coordinates(rotate_left: bool, rotate_right: bool) -> None:
    left = orthogonal(5, 1) if rotate_left else torch.eye(5, dtype=torch.float64)
    right = orthogonal(7, 2) if rotate_right else torch.eye(7, dtype=torch.float64)
    ours, theirs = nn.Parameter(target(99)), nn.Parameter(left.T @ target(99) @ right)
    rotation = (left if rotate_left else None, right if rotate_right else None)
    one = torch.eye(5, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    descend(RotatedAdamW([ours], {ours: rotation}, lr=0.01), ours, *one)
    descend(torch.optim.Adam([theirs], **OPTIONS), theirs, left, right.T)
    assert torch.allclose(ours, left @ theirs @ right.T, rtol=1e-9, atol=1e-12)


def test_it_goes_on_from_its_state_with_the_same_bits() -> None:
    left, right = orthogonal(5, 1), orthogonal(7, 2)
    one = torch.eye(5, dtype=torch.float64), torch.eye(7, dtype=torch.float64)
    whole = nn.Parameter(target(99))
    optimizer = RotatedAdamW([whole], {whole: (left, right)}, lr=0.01)
    descend(optimizer, whole, *one, steps=3)
    resumed = nn.Parameter(whole.detach().clone())
    other = RotatedAdamW([resumed], {resumed: (left, right)}, lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    descend(optimizer, whole, *one, steps=3)
    descend(other, resumed, *one, steps=3)
    assert torch.equal(whole, resumed)


def compressed(
    model: PreTrainedModel, pixels: Tensor, metric: str, **settings: str
) -> tuple[PreTrainedModel, Statistics]:
    values = {"keep_ratio": 0.5, "metric": metric, "rank_multiple": 1, "precision": "float32", "measuring_images": 0}
    config = CompressionConfig.from_dict({**values, **settings})
    compressor = ViTCompressor(config, progress=False)
    small = compressor.compress(model, pixels)
    assert compressor.statistics is not None
    return small, compressor.statistics


def test_bases_diagonalise_the_moments(vit: PreTrainedModel, pixels: Tensor) -> None:
    small, statistics = compressed(vit, pixels, "fisher", **LOW_RANK)
    rotations = eigenbases(small, find_layers(vit), statistics)
    factored = {name: module for name, module in small.named_modules() if isinstance(module, FactoredLinear)}
    rotated = 0
    for layer in find_layers(vit):
        if layer.name not in factored:
            continue
        module = factored[layer.name]
        for weight, moment in (
            (module.down.weight, statistics.inputs[layer.input_name]),
            (module.up.weight, statistics.gradients[layer.name]),
        ):
            basis = next((side for side in rotations.get(weight, ()) if side is not None), None)
            if basis is None:
                continue
            rotated += 1
            diagonal = basis.double().T @ moment.moment @ basis.double()
            off = diagonal - torch.diag(diagonal.diagonal())
            assert float(off.norm()) < 1e-4 * float(diagonal.norm())
    assert rotated > len(factored)


def test_layers_with_the_same_input_share_a_basis(vit: PreTrainedModel, pixels: Tensor) -> None:
    small, statistics = compressed(vit, pixels, "fisher", **LOW_RANK)
    rotations = eigenbases(small, find_layers(vit), statistics)
    shared: dict[str, set[int]] = {}
    for layer in find_layers(vit):
        module = small.get_submodule(layer.name)
        if isinstance(module, FactoredLinear):
            shared.setdefault(layer.input_name, set()).add(id(rotations[module.down.weight][1]))
    assert all(len(bases) == 1 for bases in shared.values())


@pytest.mark.parametrize("method", METHODS)
def test_statistics_without_full_moments_give_no_rotation(vit: PreTrainedModel, pixels: Tensor, method: str) -> None:
    small, statistics = compressed(vit, pixels, "weight", **METHODS[method])
    assert all(side is None for sides in eigenbases(small, find_layers(vit), statistics).values() for side in sides)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", ["activation", "row_fisher", "fisher"])
def test_every_rotation_is_orthogonal_and_of_the_weights_own_dimensions(
    vit: PreTrainedModel, pixels: Tensor, method: str, metric: str
) -> None:
    small, statistics = compressed(vit, pixels, metric, **METHODS[method])
    rotations = eigenbases(small, find_layers(vit), statistics)
    names = compressed_modules(small)
    compressed_weights = {
        id(parameter) for name in names for parameter in small.get_submodule(name).parameters() if parameter.dim() == 2
    }
    assert {id(weight) for weight in rotations} == compressed_weights
    for weight, sides in rotations.items():
        for size, side in zip(weight.shape, sides, strict=True):
            if side is not None:
                assert side.shape == (size, size)
                assert torch.allclose(side.T @ side, torch.eye(size), atol=1e-4)


def test_a_shared_down_is_rotated_by_the_inputs_and_queries_and_keys_by_their_own_gradients(
    vit: PreTrainedModel, pixels: Tensor
) -> None:
    small, statistics = compressed(vit, pixels, "fisher")
    rotations = eigenbases(small, find_layers(vit), statistics)
    block = vit.base_model_prefix + ".layers.0"
    attention = small.get_submodule(f"{block}.attention")
    moments = {
        (attention.qk_down.weight, 1): statistics.inputs[f"{block}.qkv"],
        (attention.q_proj.weight, 0): statistics.gradients[f"{block}.attention.q_proj"],
        (attention.k_proj.weight, 0): statistics.gradients[f"{block}.attention.k_proj"],
    }
    for (weight, side), moment in moments.items():
        basis, other = rotations[weight][side], rotations[weight][1 - side]
        assert basis is not None
        assert other is None
        diagonal = basis.double().T @ moment.moment @ basis.double()
        assert float((diagonal - torch.diag(diagonal.diagonal())).norm()) < 1e-4 * float(diagonal.norm())


def test_pruned_sides_are_not_rotated(vit: PreTrainedModel, pixels: Tensor) -> None:
    """The eigenvectors of the dense model's features are none of those that are left."""
    small, statistics = compressed(vit, pixels, "fisher", **METHODS["pruned"])
    rotations = eigenbases(small, find_layers(vit), statistics)
    pruned = {
        layer: shape
        for layer, shape in small.config.compression["layers"].items()
        if layer.endswith(("fc1", "fc2", "o_proj"))
    }
    assert pruned
    for name, shape in pruned.items():
        left, right = rotations[small.get_submodule(name).weight]
        assert (left if "out_features" in shape else right) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_the_bases_moves_the_weights_and_leaves_them_finite(
    vit: PreTrainedModel, pixels: Tensor, method: str
) -> None:
    small, statistics = compressed(vit, pixels, "fisher", **METHODS[method])
    parameters = [parameter for parameter in small.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = RotatedAdamW(parameters, eigenbases(small, find_layers(vit), statistics), lr=1e-3)
    small(pixel_values=pixels[:8], labels=torch.arange(8) % 5).loss.backward()
    optimizer.step()
    moved = [float((now.detach() - then).abs().max()) for now, then in zip(parameters, before, strict=True)]
    assert max(moved) < 0.02
    assert all(torch.isfinite(parameter).all() for parameter in parameters)
    assert sum(distance > 0 for distance in moved) > 0.8 * len(moved)
