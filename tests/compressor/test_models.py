"""Which models can be compressed, and what becomes of them."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    BertConfig,
    BertModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    PreTrainedModel,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessorPil,
    ViTModel,
)

from hf_vitcompress import CompressionConfig, ViTCompressor, evaluate_model
from hf_vitcompress.errors import UnsupportedModelError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.images.sources import open_images
from hf_vitcompress.model.stored import round_weights
from hf_vitcompress.runtime.weights import disk_bytes
from support.digits import CALIBRATION, RECIPE, identical, new, output, small_recipe
from support.models import DIGITS, TINY, seeded, tiny_config


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _as_hub_id(monkeypatch: pytest.MonkeyPatch, cache: Path) -> str:
    """The digits model as the cache of the Hub client holds a downloaded one."""
    repository = cache / "models--someone--digits"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(DIGITS / "model", target_is_directory=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return "someone/digits"


@pytest.mark.parametrize("kind", ["folder as text", "folder as path", "Hub id"])
def test_a_model_can_be_given_by_name(
    kind: str, digits: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = {"folder as text": str(DIGITS / "model"), "folder as path": DIGITS / "model"}
    name = folders.get(kind) or _as_hub_id(monkeypatch, tmp_path)
    compressor = new(metric="weight", measuring_images=0, num_images=32)
    model = compressor.compress(name, CALIBRATION)
    assert compressor.open(name).processor is not None
    same = new(metric="weight", measuring_images=0, num_images=32).compress(digits, CALIBRATION)
    round_weights(same, torch.float16)  # in which the file of the model is
    assert identical(model, same)


def test_a_model_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="nobody/nothing"):
        new().compress("nobody/nothing", CALIBRATION)


def test_another_architecture_is_refused_with_the_supported_ones() -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    with pytest.raises(UnsupportedModelError, match=r"BertModel.*beit, clip"):
        new().compress(BertModel(config), CALIBRATION)


def test_a_compressed_model_is_not_compressed_again(small: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedModelError, match="compressed already"):
        new().compress(small, CALIBRATION)


def test_each_model_gets_the_image_processor_beside_it(pictures: list[Image.Image], tmp_path: Path) -> None:
    """One compressor, two models of different image size."""
    for size in (16, 24):
        seeded(ViTForImageClassification, tiny_config(image_size=size)).save_pretrained(tmp_path / str(size))
        ViTImageProcessorPil(size={"height": size, "width": size}).save_pretrained(tmp_path / str(size))
    compressor = small_recipe()
    first, second = (compressor.compress(tmp_path / name, pictures) for name in ("16", "24"))
    assert [model.companions[1].size["height"] for model in (first, second)] == [16, 24]


def test_a_given_image_processor_goes_before_the_one_beside_the_model(digits: PreTrainedModel) -> None:
    given = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    compressor = ViTCompressor(RECIPE, image_processor=given, progress=False)
    assert compressor.open(DIGITS / "model").processor is given


DEIT = DeiTConfig(**TINY, encoder_stride=4)
HEADS: list[tuple[type[PreTrainedModel], Any, Any]] = [
    (ViTModel, tiny_config(), AutoModel),
    (ViTForMaskedImageModeling, tiny_config(encoder_stride=4), AutoModelForMaskedImageModeling),
    (DeiTForImageClassification, DEIT, AutoModelForImageClassification),
    (DeiTForImageClassificationWithTeacher, DEIT, AutoModelForImageClassification),
    (DeiTModel, DEIT, AutoModel),
    (DeiTForMaskedImageModeling, DEIT, AutoModelForMaskedImageModeling),
]


@pytest.mark.parametrize(("model_class", "config", "auto"), HEADS, ids=[head[0].__name__ for head in HEADS])
def test_every_head_compresses_saves_and_reloads(
    model_class: type[PreTrainedModel], config: Any, auto: Any, pixels: Tensor, tmp_path: Path
) -> None:
    dense = seeded(model_class, config)
    compressor = small_recipe()
    model = compressor.compress(dense, pixels)
    assert type(model).__name__ == f"Factored{model_class.__name__}"
    assert model.num_parameters() / dense.num_parameters() == pytest.approx(0.6, rel=0.005)
    assert compressor.report is not None
    assert compressor.report.compressed == count_costs(model)
    expected, got = output(dense, pixels), output(model, pixels)
    # Closer to the dense model than the mean of its answers, and not the dense model.
    assert 0 < (got - expected).norm() < (expected - expected.mean(0)).norm()
    model.save_pretrained(tmp_path)
    reloaded = auto.from_pretrained(tmp_path)
    assert type(reloaded) is type(model)
    assert torch.equal(output(reloaded, pixels), got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_model(dtype: torch.dtype, vit: PreTrainedModel, pixels: Tensor) -> None:
    model = small_recipe(metric="activation").compress(vit.to(dtype), pixels)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.isfinite(output(model, pixels.to(dtype))).all()


def test_the_work_is_the_same_where_the_caller_computes_no_gradients(vit: PreTrainedModel, pixels: Tensor) -> None:
    def compressed() -> PreTrainedModel:
        settings = {"compensation": "distill", "compensation_duration": "1 epochs", "measuring_images": 0}
        return small_recipe(**settings).compress(vit, pixels)

    expected = compressed()
    with torch.inference_mode():
        small = compressed()
    assert identical(small, expected)
    assert not any(parameter.is_inference() for parameter in small.parameters())


def test_the_dense_model_is_left_as_it_was(vit: PreTrainedModel, pixels: Tensor) -> None:
    vit.train()
    vit.classifier.requires_grad_(False)
    before, attention = weights(vit), vit.config._attn_implementation
    small_recipe().compress(vit, pixels)
    assert identical(vit, before)
    assert vit.training
    assert [name for name, p in vit.named_parameters() if not p.requires_grad] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert vit.config._attn_implementation == attention
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in vit.modules())
    assert "compression" not in vit.config.to_dict()


def test_the_result_shares_no_memory_with_the_dense_model(vit: PreTrainedModel, pixels: Tensor) -> None:
    before = weights(vit)
    model = small_recipe().compress(vit, pixels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert identical(vit, before)


def test_a_real_model_keeps_most_answers_at_little_more_than_half(assets: Path, tmp_path: Path) -> None:
    compressor = new(CompressionConfig.preset("low_rank", keep_ratio=0.6, batch_size=16, measuring_images=0))
    subject = compressor.open(assets / "vit-s14-cifar10")
    dense = subject.model
    images = open_images(assets / "cifar10" / "calibration.parquet", label2id=dense.config.label2id)
    model = compressor.compress(subject, images.select(range(32)))
    parameters = model.num_parameters()
    assert parameters / dense.num_parameters() == pytest.approx(0.6, rel=0.005)
    model.save_pretrained(tmp_path)
    bytes_each = disk_bytes(assets / "vit-s14-cifar10") / dense.num_parameters()  # it is stored in float16
    assert disk_bytes(tmp_path) == pytest.approx(bytes_each * parameters, rel=0.01)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    others = images.select(range(64, 96))
    pixels = next(others.select(range(4)).batches(subject.processor, 4)).pixel_values
    assert torch.equal(output(reloaded, pixels), output(model, pixels))
    result = evaluate_model(reloaded, others, subject.processor, dense, precision="auto", progress=False)
    assert result.agreement is not None
    assert result.agreement.value >= 0.8
