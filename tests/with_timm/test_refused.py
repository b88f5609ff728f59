"""Models of timm that are refused before any image is read."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
    Trainer,
    TrainingArguments,
)

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

import hf_vitcompress.timm  # noqa: E402, F401
from hf_vitcompress import CompressionConfig, CompressionPlan, ViTCompressor  # noqa: E402
from hf_vitcompress.architectures.running import passing  # noqa: E402
from hf_vitcompress.callbacks import CompressionCallback, ImportanceGateCallback  # noqa: E402
from hf_vitcompress.errors import ConfigError, UnsupportedModelError  # noqa: E402
from hf_vitcompress.model.loading import load_dense_model  # noqa: E402
from hf_vitcompress.model.subject import open_subject  # noqa: E402
from support.timm_compressed import ARGUMENTS, SWIN, VIT, compressed  # noqa: E402

FEATURES: dict[str, Any] = {**ARGUMENTS[VIT], "features_only": True, "out_indices": [0, 1]}


@pytest.mark.parametrize("kind", ["module", "wrapper", "backbone"])
def test_a_feature_extractor_is_refused_with_what_works(kind: str) -> None:
    if kind == "module":
        model: Any = timm.create_model(VIT, **FEATURES)
    elif kind == "wrapper":
        model = TimmWrapperModel(TimmWrapperConfig(architecture=VIT, model_args=FEATURES, num_labels=0))
    else:
        model = TimmBackbone(TimmBackboneConfig(backbone=VIT, out_indices=[0, 1]), **ARGUMENTS[VIT])
    with pytest.raises(UnsupportedModelError, match=r"feature extractor of timm.*local-dir:FOLDER"):
        open_subject(model)


def test_a_module_of_timm_that_is_compressed_is_refused(tmp_path) -> None:
    compressed(VIT).save_pretrained(tmp_path)
    small = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with pytest.raises(UnsupportedModelError, match="compressed already"):
        open_subject(small)


def test_a_plan_that_merges_tokens_is_refused_with_what_works() -> None:
    model, images = timm.create_model(VIT, **ARGUMENTS[VIT]), torch.randn(4, 3, 32, 32)
    plan = CompressionPlan({}, tokens={"timm_model.blocks.0": 1})
    with pytest.raises(UnsupportedModelError, match=r"blocks without weights of tokens \(convert_from_timm"):
        ViTCompressor(CompressionConfig(), progress=False).compress(model, images, plan=plan)


SWIN_2 = "swinv2_tiny_window8_256"


def test_a_model_that_does_not_run_itself_is_refused_with_what_timm_says() -> None:
    module = timm.create_model(SWIN_2, **{**ARGUMENTS[SWIN], "num_heads": (3, 3)}).train()
    modes = [part.training for part in module.modules()]
    said = r"SwinTransformerV2 of timm does not run.*its size \(3 × 32 × 32\): shape .* invalid"
    with pytest.raises(UnsupportedModelError, match=said):
        open_subject(module)
    assert [part.training for part in module.modules()] == modes
    dense, images = load_dense_model(module), torch.zeros(1, 3, 32, 32)
    with pytest.raises(UnsupportedModelError, match=said), passing(dense, images), torch.no_grad():
        dense(images)


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        (VIT, r"'blocks.0.attn' is timm.layers.attention.Attention\."),
        (SWIN, r"'layers.0.blocks.0.attn' is timm.models.swin_transformer.WindowAttention\."),
    ],
)
def test_heads_are_not_removed(name: str, attention: str) -> None:
    module = timm.create_model(name, **ARGUMENTS[name], num_classes=3)
    for config in (CompressionConfig(attention="prune"), CompressionConfig.preset("vtp")):
        with pytest.raises(ConfigError, match=rf'a fixed number: {attention} Use attention="joint" or'):
            ViTCompressor(config, progress=False).compress(module, torch.randn(8, 3, 32, 32))


def test_scores_of_heads_are_refused(tmp_path: Any) -> None:
    model = load_dense_model(timm.create_model(VIT, **ARGUMENTS[VIT], num_classes=3))
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ConfigError, match="attention of timm has a fixed number"):
        ImportanceGateCallback().attach(Trainer(model, arguments))


def test_a_target_is_refused_where_there_is_no_model_inside() -> None:
    with pytest.raises(ConfigError, match=r"names no model .*leave target \(--target\) out"):
        open_subject(timm.create_model(VIT, **ARGUMENTS[VIT]), target="timm_model")


def test_a_trainer_needs_a_wrapper(tmp_path: Any) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    trainer = Trainer(timm.create_model(VIT, **ARGUMENTS[VIT]), arguments)
    with pytest.raises(UnsupportedModelError, match=r"module of timm.*TimmWrapperForImageClassification.*save_for_hf"):
        CompressionCallback().attach(trainer)


def test_a_headless_model_is_no_classifier(tmp_path: Any) -> None:
    compressed(VIT, classes=0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no classifier: load it with AutoModel, or give num_labels"):
        AutoModelForImageClassification.from_pretrained(tmp_path)
    assert AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3).num_labels == 3
