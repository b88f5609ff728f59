"""Programs of timm models: what they compute, and the image processor beside them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, TimmBackbone, TimmBackboneConfig

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.errors import ExportError
from support.programs import skip_without

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

from support.timm_models import PLAIN, SWIN_TINY, VIT, images, wrapper

CASES = [("onnx", VIT), ("torch-export", SWIN_TINY), ("openvino", VIT), ("executorch", VIT)]


def compressed(model: Any, pixels: torch.Tensor) -> Any:
    config = CompressionConfig(keep_ratio=0.7, measuring_images=0, fisher_probes=1, rank_multiple=1)
    return ViTCompressor(config, progress=False).compress(model, pixels)


@pytest.mark.parametrize(("to", "name"), CASES)
def test_it_computes_what_the_compressed_model_does(to: str, name: str, tmp_path: Path) -> None:
    skip_without(to)
    dense = wrapper(name)
    small = compressed(dense, images(dense, 64))
    result = export_model(small, to, tmp_path / to)
    assert result.report.max_difference < 1e-5
    config = AutoConfig.from_pretrained(tmp_path / to)
    assert (config.model_type, config.architectures) == ("timm_wrapper", ["TimmWrapperForImageClassification"])
    processor = AutoImageProcessor.from_pretrained(tmp_path / to)
    assert tuple(processor.data_config["input_size"]) == (3, 32, 32)


def test_a_backbone_gives_each_map_a_name(tmp_path: Path) -> None:
    skip_without("onnx")
    dense = TimmBackbone(TimmBackboneConfig(backbone=VIT, out_indices=[0, 1]), **PLAIN)
    small = compressed(dense, torch.randn(64, 3, 32, 32))
    report = export_model(small, "onnx", tmp_path / "onnx").report
    assert [output.name for output in report.outputs] == ["feature_maps.0", "feature_maps.1"]
    assert report.max_difference < 1e-5
    config = AutoConfig.from_pretrained(tmp_path / "onnx")
    assert (config.model_type, config.backbone, config.out_indices) == ("timm_backbone", VIT, [0, 1])
    processor = AutoImageProcessor.from_pretrained(tmp_path / "onnx")
    assert tuple(processor.data_config["input_size"]) == (3, 32, 32)


def test_a_dense_model_keeps_its_fused_layers(tmp_path: Path) -> None:
    skip_without("torch-export")
    wrapper().save_pretrained(tmp_path / "dense")
    export_model(tmp_path / "dense", "torch-export", tmp_path / "program")
    program = torch.export.load(next((tmp_path / "program").glob("*.pt2")))
    layers = [node for node in program.graph.nodes if "linear" in str(node.target)]
    assert len(layers) == 2 * 4 + 1
    with pytest.raises(ExportError, match=r"doesn't match model \(32\). Choose another size with image_size"):
        export_model(tmp_path / "dense", "torch-export", tmp_path / "other", image_size=64)


def test_a_model_for_any_size_gets_a_processor_of_the_chosen_one(tmp_path: Path) -> None:
    skip_without("torch-export")
    dense = wrapper(dynamic_img_size=True)
    export_model(dense, "torch-export", tmp_path / "program", image_size=(32, 64))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "program")
    assert tuple(processor.data_config["input_size"]) == (3, 32, 64)
    assert torch.equal(torch.tensor(dense.config.pretrained_cfg["input_size"]), torch.tensor([3, 32, 32]))
