"""Feature extractors of timm: compressed as backbones of transformers; and whole models that are opened as one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    DetrConfig,
    DetrForObjectDetection,
    PreTrainedModel,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperModel,
)

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

import hf_vitcompress.timm  # noqa: E402, F401
from hf_vitcompress import CompressionConfig, ViTCompressor  # noqa: E402
from hf_vitcompress.deploy.quantization import quantize  # noqa: E402
from hf_vitcompress.errors import QuantizationError, UnsupportedModelError  # noqa: E402
from hf_vitcompress.model.loading import load_dense_model  # noqa: E402
from hf_vitcompress.model.subject import open_subject  # noqa: E402
from hf_vitcompress.modeling_timm import FactoredTimmViTBackbone, TimmViTModel  # noqa: E402
from support.fake_hub import FakeHub, running_hub  # noqa: E402, F401  (the fixture "hub")
from support.timm_compressed import ARGUMENTS, EVA, SWIN, VIT, compressed, pixels  # noqa: E402

STAGES = [0, 1]
DEEP: dict[str, Any] = {**ARGUMENTS[VIT], "depth": 4}
FEATURES: dict[str, Any] = {**DEEP, "features_only": True, "out_indices": [0, 2]}


@torch.no_grad()
def maps(model: Any, images: Tensor) -> list[Tensor]:
    result = model(images)
    return list(result if isinstance(result, list) else result.feature_maps)


def equal(own: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(own, others, strict=True))


def same(model: Any, other: Any, images: Tensor) -> bool:
    return equal(maps(model, images), maps(other, images))


def check_loaded(model: Any, other: Any, images: Tensor) -> None:
    """That all weights are equal; a file's lie elsewhere in memory, and sums of products are rounded in another way."""
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for one, expected in zip(maps(model, images), maps(other, images), strict=True):
        torch.testing.assert_close(one, expected)


def backbone(name: str = VIT, out_indices: Any = (0, 2), **arguments: Any) -> Any:
    torch.manual_seed(0)
    config = TimmBackboneConfig(backbone=name, out_indices=list(out_indices))
    return TimmBackbone(config, **{**ARGUMENTS[name], "depth": 4, **arguments}).eval()


def small_one(model: Any, images: Tensor) -> Any:
    config = CompressionConfig(keep_ratio=0.7, measuring_images=0, fisher_probes=1, rank_multiple=1)
    return ViTCompressor(config, progress=False).compress(model, images)


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    model: PreTrainedModel = small_one(backbone(), pixels(VIT, 32))
    return model


@pytest.fixture(scope="module")
def folder(small: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone") / "small"
    small.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    compressed(VIT).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", [VIT, EVA])
def test_the_form_that_is_compressed_gives_the_same_maps(name: str) -> None:
    dense = backbone(name)
    split: Any = open_subject(dense).model
    assert same(split, dense, pixels(name))
    assert (split.out_features, split.out_indices) == (dense.out_features, dense.out_indices)
    assert (split.stage_names, split.channels) == (dense.stage_names, dense.channels)


@pytest.mark.parametrize("noted", [True, False])
def test_a_plain_feature_extractor_goes_in_too(noted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not noted:  # as with earlier releases of timm
        monkeypatch.delattr(timm.models, "get_model_args", raising=False)
    dense = timm.create_model(VIT, **FEATURES, in_chans=1, reg_tokens=2).train()
    subject = open_subject(dense)
    split: Any = subject.model
    assert split.training
    assert dense.training
    assert same(split.eval(), dense.eval(), pixels(VIT, channels=1))
    assert (split.config.image_size, split.config.num_channels) == (32, 1)
    assert tuple(subject.processor.data_config["input_size"]) == (1, 32, 32)


@pytest.mark.parametrize("out_indices", [(-1,), 2, (2, 0)])
def test_stages_are_those_that_timm_gives(out_indices: Any) -> None:
    dense = timm.create_model(VIT, **{**FEATURES, "out_indices": out_indices}).eval()
    assert same(open_subject(dense).model, dense, pixels(VIT))


def test_a_wrapper_of_feature_maps_goes_in_as_a_backbone() -> None:
    wrapper: Any = TimmWrapperModel(TimmWrapperConfig(architecture=VIT, model_args=FEATURES, num_labels=0)).eval()
    with torch.no_grad():
        expected = wrapper(pixels(VIT)).last_hidden_state
    assert equal(maps(open_subject(wrapper).model, pixels(VIT)), expected)


def test_what_wraps_an_extractor_is_taken_off() -> None:
    dense = timm.create_model(VIT, **FEATURES).eval()
    assert same(open_subject(torch.nn.DataParallel(dense)).model, dense, pixels(VIT))


def test_an_extractor_that_holds_its_model_is_taken_of_any_family() -> None:
    dense = timm.create_model(SWIN, **ARGUMENTS[SWIN], features_only=True, feature_cls="getter", out_indices=STAGES)
    assert same(open_subject(dense.eval()).model, dense, pixels(SWIN))


def test_it_loads_and_saves(small: Any, folder: Path, tmp_path: Path) -> None:
    assert type(small) is FactoredTimmViTBackbone
    loaded = AutoModel.from_pretrained(folder)
    assert type(loaded) is type(small)
    check_loaded(loaded, small, pixels(VIT))
    assert (loaded.out_features, loaded.channels) == (["blocks.0", "blocks.2"], [32, 32])
    loaded.save_pretrained(tmp_path)
    last = AutoModel.from_pretrained(tmp_path, out_indices=[2])
    torch.testing.assert_close(maps(last, pixels(VIT)), maps(small, pixels(VIT))[1:])
    assert AutoImageProcessor.from_pretrained(folder).data_config["input_size"] == (3, 32, 32)


def test_its_dense_form_is_a_backbone_of_timm(small: Any) -> None:
    dense = small.to_dense()
    assert type(dense) is TimmBackbone
    assert dense.out_features == small.out_features
    for own, expected in zip(maps(dense, pixels(VIT)), maps(small, pixels(VIT)), strict=True):
        torch.testing.assert_close(own, expected)
    assert same(open_subject(dense).model, dense, pixels(VIT))


def test_all_maps_are_hidden_states(small: Any) -> None:
    with torch.no_grad():
        result = small(pixels(VIT), output_hidden_states=True)
    assert len(result.hidden_states) == 3
    assert equal(result.feature_maps, maps(small, pixels(VIT)))
    assert equal(result.feature_maps, result.hidden_states[::2])
    with pytest.raises(ValueError, match="output_attentions"):
        small(pixels(VIT), output_attentions=True)


def test_its_folder_is_no_other_model(folder: Path) -> None:
    with pytest.raises(ValueError, match="is a backbone, without the layers after its last feature map"):
        AutoModelForImageClassification.from_pretrained(folder, num_labels=3)
    with pytest.raises(UnsupportedModelError, match=r"is a backbone.*the folder of the whole model"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    with pytest.raises(ValueError, match=r"ends with the stage 2 \(blocks.2\), and 3 \(blocks.3\) is asked for"):
        AutoModel.from_pretrained(folder, out_indices=[3])
    with pytest.raises(Exception, match="This checkpoint has factored layers"):
        TimmViTModel.from_pretrained(folder)


def test_a_config_of_no_class_makes_a_whole_model(whole: Path) -> None:
    config = AutoConfig.from_pretrained(whole)
    config.architectures = []
    made = AutoModel.from_config(type(config).from_dict({**config.to_dict(), "architectures": None}))
    assert type(made).__name__ == type(AutoModel.from_config(config)).__name__ == "FactoredTimmViTModel"


def test_its_card_says_how_it_is_loaded(folder: Path, small: Any) -> None:
    """By `AutoModel`: `AutoBackbone` of transformers opens no folder on this disk."""
    card = (folder / "README.md").read_text()
    assert 'AutoModel.from_pretrained("path/or/hub-id")' in card
    assert "AutoBackbone" not in card
    assert type(AutoModel.from_pretrained(folder)) is type(small)
    assert "timm's own scripts" not in card
    assert "pipeline_tag" not in card


def test_an_auto_class_loads_it_from_the_hub(hub: FakeHub, small: Any, folder: Path) -> None:
    hub.add_repo("me/x", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    check_loaded(AutoBackbone.from_pretrained("me/x"), small, pixels(VIT))


@pytest.mark.parametrize("name", [VIT, SWIN, EVA])
def test_a_whole_model_is_opened_as_a_backbone(name: str, tmp_path: Path) -> None:
    model: Any = compressed(name)
    model.save_pretrained(tmp_path)
    opened, info = FactoredTimmViTBackbone.from_pretrained(tmp_path, out_indices=[0], output_loading_info=True)
    assert not any(info.values())
    assert opened.config.compression["layers"] == model.config.compression["layers"]
    with torch.no_grad():
        expected = model.timm_model.forward_intermediates(pixels(name), indices=[0], intermediates_only=True)
    torch.testing.assert_close(maps(opened, pixels(name)), expected)


def test_layers_after_the_last_map_are_left_out(tmp_path: Path) -> None:
    model = small_one(timm.create_model(VIT, **DEEP, num_classes=5), pixels(VIT, 32))
    model.save_pretrained(tmp_path)
    opened = FactoredTimmViTBackbone.from_pretrained(tmp_path, out_features=["blocks.1"])
    assert opened.out_indices == [1]
    assert {layer.split(".")[2] for layer in opened.config.compression["layers"]} == {"0", "1"}
    assert len(model.config.compression["layers"]) > len(opened.config.compression["layers"])
    of_timm = TimmBackbone.from_pretrained(f"local-dir:{tmp_path}", out_indices=[1]).eval()
    torch.testing.assert_close(maps(opened, pixels(VIT)), maps(of_timm, pixels(VIT)))


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"out_features": ["stage1"]}, "out_features names 'stage1'; vit_tiny.* has blocks.0, blocks.1"),
        ({"out_indices": [0, 7]}, "out_indices holds 7, and vit_tiny.* has 2 stages"),
        ({"out_indices": [1, 0]}, "in the same order as stage_names"),
    ],
)
def test_stages_that_there_are_not_are_refused(chosen: Any, said: str, whole: Path) -> None:
    with pytest.raises(ValueError, match=said):
        FactoredTimmViTBackbone.from_pretrained(whole, **chosen)


def test_a_detector_is_built_on_it(small: Any, folder: Path, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 5, "num_labels": 3}
    feed_forward = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    config: Any = DetrConfig
    config = config(backbone_config=AutoConfig.from_pretrained(folder), **sizes, **feed_forward, **heads)
    detector: Any = DetrForObjectDetection(config).eval()
    inside = detector.model.backbone.model
    assert type(inside) is FactoredTimmViTBackbone
    inside.load_state_dict(small.state_dict())
    assert same(inside, small, pixels(VIT))
    detector.save_pretrained(tmp_path)
    again: Any = DetrForObjectDetection.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        check_loaded(again.model.backbone.model, small, pixels(VIT))
        torch.testing.assert_close(again(pixels(VIT)).logits, detector(pixels(VIT)).logits)


def test_a_dense_backbone_is_opened_from_its_folder(tmp_path: Path) -> None:
    dense = TimmBackbone(TimmBackboneConfig(backbone=VIT, out_indices=[0])).eval()
    dense.save_pretrained(tmp_path / "timm")
    split: Any = open_subject(tmp_path / "timm").model
    torch.testing.assert_close(maps(split, pixels(VIT, 1, 224)), maps(dense, pixels(VIT, 1, 224)))
    with pytest.raises(QuantizationError, match="TimmBackbone, which transformers loads from no folder"):
        quantize(tmp_path / "timm")
    split.save_pretrained(tmp_path / "again")
    again = load_dense_model(tmp_path / "again")
    torch.testing.assert_close(maps(again, pixels(VIT, 1, 224)), maps(dense, pixels(VIT, 1, 224)))
