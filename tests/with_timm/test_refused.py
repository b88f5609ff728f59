"""Models of timm that are refused before any image is read."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    DetrConfig,
    DetrForObjectDetection,
    TimmBackbone,
    TimmBackboneConfig,
    Trainer,
    TrainingArguments,
)

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

from timm.models._features import FeatureGetterNet  # noqa: E402

import hf_vitcompress.timm  # noqa: E402, F401
from hf_vitcompress import CompressionConfig, CompressionPlan, ViTCompressor  # noqa: E402
from hf_vitcompress.architectures.running import passing  # noqa: E402
from hf_vitcompress.callbacks import CompressionCallback, ImportanceGateCallback  # noqa: E402
from hf_vitcompress.errors import ConfigError, UnsupportedModelError  # noqa: E402
from hf_vitcompress.model.loading import load_dense_model  # noqa: E402
from hf_vitcompress.model.subject import open_subject  # noqa: E402
from support.timm_compressed import ARGUMENTS, SWIN, VIT, compressed  # noqa: E402

FEATURES: dict[str, Any] = {**ARGUMENTS[VIT], "features_only": True, "out_indices": [0]}


@pytest.mark.parametrize("name", [SWIN, "resnet18"])
def test_a_feature_extractor_made_of_parts_is_refused_with_what_works(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"FeatureListNet.*feature_cls=\"getter\".*local-dir:FOLDER"):
        open_subject(timm.create_model(name, features_only=True, out_indices=[0], **ARGUMENTS.get(name, {})))


@pytest.mark.parametrize("changes", [{"norm": True}, {"output_fmt": "NLC"}])
def test_feature_maps_in_another_form_are_refused(changes: dict[str, Any]) -> None:
    extractor = FeatureGetterNet(timm.create_model(VIT, **ARGUMENTS[VIT]), [0], **changes)
    with pytest.raises(UnsupportedModelError, match="normalized features, or features in another order"):
        open_subject(extractor)


def test_stages_of_one_name_are_refused() -> None:
    extractor = timm.create_model("crossvit_tiny_240", features_only=True, out_indices=[0])
    with pytest.raises(UnsupportedModelError, match=r"makes no backbone.*same order as stage_names.*Instead, compress"):
        open_subject(extractor)


def test_an_extractor_that_was_changed_is_refused() -> None:
    extractor = timm.create_model(VIT, **FEATURES)
    extractor.model.blocks[0].mlp.fc1 = torch.nn.Linear(32, 100)
    with pytest.raises(UnsupportedModelError, match=r"features_only=True, out_indices=\[0\]\) builds: blocks.0.mlp.fc"):
        open_subject(extractor)
    with pytest.raises(UnsupportedModelError, match=r"timm builds no blocks\.1"):
        open_subject(FeatureGetterNet(timm.create_model(VIT, **ARGUMENTS[VIT]), [0], prune=False))
    extractor = timm.create_model(VIT, **FEATURES)
    del extractor.pretrained_cfg
    del extractor.model.pretrained_cfg
    with pytest.raises(UnsupportedModelError, match="does not say which architecture it is of"):
        open_subject(extractor)


def test_what_reads_a_feature_extractor_is_refused() -> None:
    backbone: Any = TimmBackboneConfig(backbone="test_vit", out_indices=[0])
    config: Any = DetrConfig
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    with pytest.raises(UnsupportedModelError, match=r"DetrForObjectDetection reads a feature extractor.*by itself"):
        open_subject(DetrForObjectDetection(config(backbone_config=backbone, **sizes)))


def test_a_module_of_timm_that_is_compressed_is_refused(tmp_path) -> None:
    compressed(VIT).save_pretrained(tmp_path)
    name = f"local-dir:{tmp_path}"
    for small in (
        timm.create_model(name, pretrained=True),
        timm.create_model(name, pretrained=True, features_only=True, out_indices=[0]),
        TimmBackbone.from_pretrained(name, out_indices=[0]),
    ):
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
