"""The families of timm: their fused layers are split exactly, and values may be narrowed where the table says so."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.inputs import image_shape
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.evaluation.costs import count_macs
from hf_vitcompress.model.subject import open_subject
from hf_vitcompress.modeling_timm import HeadOutput, SplitProjection
from support.models import REPOSITORY
from support.timm_models import wrapper
from timm_table import ROWS, Row, described, full, rows_of, small

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.architecture)


@pytest.fixture(scope="module")
def page() -> dict[str, list[str]]:
    """Architecture → cells of the table in the documentation."""
    rows = rows_of((REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8"))
    return {cells[1].strip("`"): cells for cells in rows}


def test_the_page_has_every_family_and_no_other(page: dict[str, list[str]]) -> None:
    assert list(page) == [row.architecture for row in ROWS], "renew it with `make support-timm`"


@every_row
@torch.no_grad()
def test_a_family_is_split_exactly_and_is_what_the_page_says(row: Row, page: dict[str, list[str]]) -> None:
    wrapper = small(row)
    split = open_subject(wrapper).model
    images = torch.randn(2, *image_shape(split))
    before = wrapper(images).logits
    torch.testing.assert_close(split(images).logits, before, rtol=1e-5, atol=1e-5)
    assert tuple(page[row.architecture][2:4]) == described(wrapper)
    turn_values(split)
    torch.testing.assert_close(split(images).logits, before, rtol=1e-3, atol=1e-4)
    half = narrow_values(split, remove=False)
    emptied = split(images).logits
    assert narrow_values(split, remove=True) == half
    torch.testing.assert_close(split(images).logits, emptied, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.0.attn.qkv", ["0.attn.qkv.q", "0.attn.qkv.k", "0.attn.qkv.v"]),
        ("attn.proj", ["0.attn.proj.o", "1.attn.proj.o"]),
        ("blocks.1.mlp", ["1.mlp.fc1", "1.mlp.fc2"]),
        ("*v", ["0.attn.qkv.v", "1.attn.qkv.v"]),
    ],
)
def test_names_of_timms_modules_stand_for_the_layers_in_them(pattern: str, expected: list[str]) -> None:
    found = find_layers(open_subject(wrapper()).model, [pattern])
    assert [layer.name.removeprefix("timm_model.blocks.") for layer in found] == expected


def pairs(model: nn.Module) -> list[tuple[SplitProjection, HeadOutput]]:
    """Projections whose values may be narrowed, and what reads these."""
    parents = [module for module in model.modules() if isinstance(getattr(module, "proj", None), HeadOutput)]
    return [(parent.qkv, parent.proj) for parent in parents]  # type: ignore[misc]


def turn_values(model: nn.Module) -> None:
    """Express the values of each head in another basis, and let the output projection undo it."""
    for projection, output in pairs(model):
        size = projection.v.out_features // output.heads
        turns = [torch.linalg.qr(torch.randn(size, size))[0] for _ in range(output.heads)]
        turn = torch.block_diag(*turns)
        projection.v.weight.copy_(turn @ projection.v.weight)
        if projection.v.bias is not None:
            projection.v.bias.copy_(turn @ projection.v.bias)
        output.o.weight.copy_(output.o.weight @ turn.T)


def narrow_values(model: nn.Module, remove: bool) -> list[int]:
    """Set the second half of every head's values to 0, or take it out; returns the widths that are left."""
    widths = []
    for projection, output in pairs(model):
        features = torch.arange(output.o.in_features).reshape(output.heads, -1)
        kept = features[:, : features.shape[1] // 2].flatten()
        rest = features[:, features.shape[1] // 2 :].flatten()
        v, o = projection.v, output.o
        assert v is not None
        if remove:
            projection.v = nn.Linear(v.in_features, len(kept), v.bias is not None)
            output.o = nn.Linear(len(kept), o.out_features, o.bias is not None)
            values = {name: tensor[kept] for name, tensor in v.state_dict().items()}
            projection.v.load_state_dict(values)
            output.o.load_state_dict({**o.state_dict(), "weight": o.weight[:, kept]})
        else:
            for tensor in v.parameters():
                tensor[rest] = 0
        widths.append(len(kept))
    return widths


@pytest.mark.filterwarnings("ignore:.*calibration tokens reached")  # few images, for speed
@pytest.mark.parametrize("name", ["hiera_tiny_224", "swin_tiny_patch4_window7_224"])
def test_what_a_plan_costs_is_what_runs(name: str) -> None:
    subject = open_subject(small(next(row for row in ROWS if row.architecture == name)))
    images = torch.randn(2, *image_shape(subject.model))
    loader = DataLoader([{"pixel_values": image} for image in images], batch_size=2)
    config = CompressionConfig(keep_ratio=0.8, num_images=2, metric="activation", mlp="none", compensation="none")
    compressor = ViTCompressor(config, progress=False)
    statistics = compressor.calibrate(subject, loader)
    planner = compressor.planner(subject, statistics)
    plan = planner.plan(config)
    assert any("out_features" in shape for name, shape in plan.layers.items() if name.endswith(".v"))
    saved = sum(group.choice({}).macs - group.choice(plan.shapes_of(group)).macs for group in planner.groups)
    assert count_macs(compressor.build(subject, statistics, plan)) == planner.costs.macs - saved


def test_a_share_of_parameters_is_counted_without_storage() -> None:
    model = full(ROWS[0])
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet18", "tiny_vit_5m_224"),
        ("convnext_tiny", "swin_tiny_patch4_window7_224"),
        ("mixer_s32_224", "vit_small_patch16_224"),
        ("visformer_tiny", "tiny_vit_5m_224"),
    ],
)
def test_a_model_without_such_blocks_is_refused_with_the_nearest_that_works(name: str, nearest: str) -> None:
    from hf_vitcompress.architectures.layers import find_layers

    with pytest.raises(UnsupportedModelError, match=f"{name!r} of timm has no blocks .* is {nearest!r}"):
        find_layers(full(Row(name, name, {})))


def test_a_model_that_shares_parameters_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="parameters in several places"):
        full(Row("CoaT", "coat_tiny", {}))
