"""Compressed folders of timm models where the package is not installed, and what of them counts as ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

from hf_vitcompress.configuration_factored import TRAVELLING_FILES
from hf_vitcompress.configuration_timm import ARCHITECTURE, FILES
from hf_vitcompress.publish.names import published_files
from hf_vitcompress.runtime.manifest import foreign_files, is_former_name, written_files
from support.clean_interpreter import run_script
from support.factored import factored
from support.timm_compressed import EVA, SWIN, VIT, as_backbone, compressed, pixels

SCRIPT = """
import json, os, sys
import timm, torch, transformers
from PIL import Image
results, tensors, images = {}, {}, torch.load("pixels.pt")
def last(result):
    return last(result[-1]) if isinstance(result, tuple | dict) else result
for name, kind in json.load(open("names.json")).items():
    auto = getattr(transformers, kind)
    model = auto.from_pretrained(name, trust_remote_code=True).eval()
    model.save_pretrained(f"{name}-again")
    again = auto.from_pretrained(f"{name}-again", trust_remote_code=True).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(name)
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
    config.save_pretrained(f"{name}-config")
    with torch.no_grad():
        tensors[name], tensors[f"{name}-again"] = (last(each(images[name])) for each in (model, again))
    results[name] = {
        "class": type(model).__name__,
        "architecture": config.architecture,
        "processor": type(processor).__name__,
        "saved": sorted(os.listdir(f"{name}-again")),
        "auto_map": json.load(open(f"{name}-config/config.json"))["auto_map"],
    }
plain = transformers.AutoModelForImageClassification.from_pretrained("plain", trust_remote_code=True)
plain.save_pretrained("plain-again")
results["plain"] = sorted(os.listdir("plain-again"))
try:
    timm.create_model("local-dir:vit", pretrained=True)
except RuntimeError as error:
    results["in timm"] = str(error)
results["imported"] = [name for name in sys.modules if name.split(".")[0] == "hf_vitcompress"]
torch.save(tensors, "tensors.pt")
json.dump(results, open("results.json", "w"))
"""

Clean = tuple[Path, dict[str, PreTrainedModel], dict[str, Any]]
NAMES = {"vit": VIT, "swin": SWIN, "eva": EVA, "maps": VIT}
KINDS = {"eva": "AutoModel", "maps": "AutoModel"}


def last(result: Any) -> torch.Tensor:
    """The last tensor of what a model returns."""
    return last(result[-1]) if isinstance(result, tuple | dict) else result


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = tmp_path_factory.mktemp("clean")
    models = {name: compressed(path, classes=0 if name in KINDS else 10) for name, path in NAMES.items()}
    models["maps"] = as_backbone(models["maps"], folder / "maps")
    for name, model in {**models, "plain": factored()}.items():
        model.save_pretrained(folder / name)
    torch.save({name: pixels(path) for name, path in NAMES.items()}, folder / "pixels.pt")
    kinds = {name: KINDS.get(name, "AutoModelForImageClassification") for name in NAMES}
    (folder / "names.json").write_text(json.dumps(kinds))
    run_script(SCRIPT, folder, {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")})
    results = json.loads((folder / "results.json").read_text())
    assert results.pop("imported") == []
    return folder, models, results


@pytest.mark.parametrize("name", NAMES)
def test_trusted_code_computes_the_same_and_saves_what_it_came_with(clean: Clean, name: str) -> None:
    folder, models, results = clean
    model, found, tensors = models[name], results[name], torch.load(folder / "tensors.pt")
    with torch.no_grad():
        expected = last(model(pixels(NAMES[name])))
    assert torch.equal(tensors[name], expected)
    assert torch.equal(tensors[f"{name}-again"], expected)
    assert found["class"] == type(model).__name__
    assert found["architecture"] == NAMES[name]
    assert found["processor"] == "TimmWrapperImageProcessor"
    assert found["saved"] == sorted(["config.json", "model.safetensors", *TRAVELLING_FILES, *FILES])
    assert found["auto_map"] == json.loads((folder / name / "config.json").read_text())["auto_map"]


def test_without_the_package_timm_says_what_to_install(clean: Clean) -> None:
    assert clean[2]["in timm"] == f"Unknown model ({ARCHITECTURE})"


def test_other_models_travel_without_the_files_of_timm(clean: Clean) -> None:
    assert clean[2]["plain"] == sorted(["config.json", "model.safetensors", *TRAVELLING_FILES])


def test_with_the_package_trusted_code_gives_its_classes(clean: Clean) -> None:
    folder, models, _ = clean
    loaded = AutoModelForImageClassification.from_pretrained(folder / "vit", trust_remote_code=True)
    assert type(loaded) is type(models["vit"])


def test_a_config_alone_is_saved_as_it_was(clean: Clean, tmp_path: Path) -> None:
    AutoConfig.from_pretrained(clean[0] / "vit").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (clean[0] / "vit" / "config.json").read_text()
    )


def test_its_files_are_ours_and_are_published(clean: Clean) -> None:
    ours = {*TRAVELLING_FILES, *FILES, "config.json", "model.safetensors"}
    for folder in (clean[0] / "vit", clean[0] / "vit-again"):  # with a list of files, and saved without the package
        assert ours <= written_files(folder).keys()
        assert foreign_files(folder) == []
        assert published_files(folder).keys() == ours
    assert all(map(is_former_name, FILES))


def test_they_go_when_the_folder_is_renewed_with_another_model(tmp_path: Path) -> None:
    compressed(VIT).save_pretrained(tmp_path)
    factored().save_pretrained(tmp_path)
    assert not [name for name in FILES if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in TRAVELLING_FILES)
