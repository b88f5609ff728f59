"""A model of timm is taken however it is given."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel, TimmWrapperConfig

from hf_vitcompress import convert_from_timm, convert_to_timm
from hf_vitcompress.configuration_timm import ARCHITECTURE
from hf_vitcompress.conversion.from_timm import Conversion, conversion_from_timm
from hf_vitcompress.conversion.to_timm import save_timm
from hf_vitcompress.errors import MissingPackageError, UnsupportedModelError
from support.timm_models import TINY_TIMM, tiny_timm

NEEDS_TIMM = pytest.mark.usefixtures("timm")


@pytest.fixture(scope="module")
def timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")


@pytest.fixture(scope="module")
def module(timm: Any) -> Any:
    return tiny_timm("vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def folder(timm: Any, module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As timm's own function writes it."""
    place = tmp_path_factory.mktemp("timm")
    names = ["ape", "bee", "cat", "dog", "eel"]
    timm.models.save_for_hf(module, str(place), model_config={"label_names": names}, safe_serialization=True)
    return place


def test_the_licence_beside_it_goes_along(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "timm")
    (tmp_path / "timm" / "LICENSE").write_text("terms")
    (tmp_path / "timm" / "README.md").write_text("how timm loads it")
    convert_from_timm(tmp_path / "timm").save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "LICENSE").read_text() == "terms"
    assert not (tmp_path / "ours" / "README.md").exists()


def as_converted(module: Any) -> Conversion:
    """With the arguments that it was made with."""
    return Conversion(module, "", 0.0, (), {**TINY_TIMM, "num_classes": 5})


def same(model: Any, module: Any) -> bool:
    images = torch.randn(2, 3, 32, 32)
    return torch.equal(model(images).logits, module(images))


def test_a_folder_in_timms_format(folder: Path, module: Any) -> None:
    model: Any = convert_from_timm(folder)
    assert same(model, module)
    assert model.config.id2label[2] == "cat"


def test_a_wrapper_and_the_folder_it_was_saved_to(module: Any, tmp_path: Path) -> None:
    save_timm(as_converted(module), tmp_path / "plain")
    wrapper = AutoModelForImageClassification.from_pretrained(tmp_path / "plain")
    wrapper.save_pretrained(tmp_path / "wrapped")
    for given in (wrapper, tmp_path / "plain", tmp_path / "wrapped"):
        model: Any = convert_from_timm(given)
        assert same(model, module)
    assert conversion_from_timm(tmp_path / "wrapped").name == str(tmp_path / "wrapped")


def test_a_wrapper_without_head(module: Any, tmp_path: Path) -> None:
    save_timm(as_converted(module), tmp_path / "plain")
    wrapper = AutoModel.from_pretrained(tmp_path / "plain")
    wrapper.save_pretrained(tmp_path / "wrapped")
    for given in (wrapper, tmp_path / "wrapped"):
        assert type(convert_from_timm(given)).__name__ == "ViTModel"


@NEEDS_TIMM
def test_a_wrapper_of_feature_maps_is_refused() -> None:
    config = TimmWrapperConfig(
        architecture="vit_tiny_patch16_224",
        model_args={"features_only": True, "depth": 3, "embed_dim": 32, "num_heads": 4, "img_size": 32},
    )
    with pytest.raises(UnsupportedModelError, match="features_only"):
        convert_from_timm(AutoModel.from_config(config))


@NEEDS_TIMM
def test_other_things_are_refused_with_what_is_taken(vit: PreTrainedModel, tmp_path: Path) -> None:
    vit.save_pretrained(tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text("{}")
    for given, said in [
        (vit, "not a model of timm"),
        (7, "not a model of timm"),
        (torch.nn.Linear(2, 2), "not a model of timm"),
        (tmp_path / "ours", "model of transformers already"),
        (tmp_path / "strange", "names no architecture"),
        (tmp_path / "empty", "config.json"),
        (tmp_path / "absent", "There is no folder"),
        ("local-dir:/timm/vit", "without it: '/timm/vit'"),
        ("vit_tiny_patch16_224.augreg_in21k", "'timm/vit_tiny_patch16_224.augreg_in21k'"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "cannot be loaded"),
    ]:
        with pytest.raises(UnsupportedModelError, match=said):
            convert_from_timm(given)


def test_a_folder_without_its_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copyfile(folder / "config.json", tmp_path / "config.json")
    with pytest.raises(UnsupportedModelError, match=r"cannot be loaded: .*no file named model.safetensors"):
        convert_from_timm(tmp_path)


def test_weights_of_another_model_are_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "timm")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["depth"] = 3
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"lacks weights.*blocks\.2\."):
        convert_from_timm(tmp_path / "timm")


def test_a_compressed_folder_in_timms_format_is_refused(folder: Path, tmp_path: Path) -> None:
    config = {**json.loads((folder / "config.json").read_text()), "architecture": ARCHITECTURE}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"import hf_vitcompress\.timm"):
        convert_from_timm(tmp_path)


@NEEDS_TIMM
def test_weights_that_are_not_there_are_named() -> None:
    import timm

    with pytest.raises(UnsupportedModelError, match="meta"):
        convert_from_timm(timm.create_model("vit_tiny_patch16_224", device="meta"))


@pytest.mark.parametrize("convert", [convert_from_timm, convert_to_timm])
def test_without_timm_the_extra_is_named(convert: Any, vit: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingPackageError, match=r'pip install "hf-vitcompress\[timm\]"'):
        convert(vit)
