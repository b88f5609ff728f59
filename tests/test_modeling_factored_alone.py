"""Factored checkpoints where the package is not, or a dense class opens them."""

import json
import shutil
import sys

import pytest
import torch
import transformers
from transformers import (
    AutoModelForImageClassification,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
)

from hf_vitcompress.configuration_factored import TRAVELLING_FILES
from hf_vitcompress.planning.building import merged_model
from support.clean_interpreter import run_script
from support.factored import HEADS, assert_same_outputs, factored, formed
from support.models import REPOSITORY


@pytest.mark.parametrize(("dense", "auto"), HEADS, ids=[dense.__name__ for dense, _ in HEADS])
def test_a_dense_class_refuses_a_factored_checkpoint(dense, auto, tmp_path):
    factored(dense).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="pip install hf-vitcompress"):
        dense.from_pretrained(tmp_path)
    with pytest.raises(Exception, match="pip install hf-vitcompress"):
        dense.config_class.from_pretrained(tmp_path)


CLEAN_SCRIPT = """
import json, sys, warnings
import torch
from transformers import (
    AutoModel, AutoModelForImageClassification, DeiTForImageClassificationWithTeacher, ViTForImageClassification
)

def error_of(load):
    try:
        load()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

pixels = torch.load("pixels.pt")
results = {
    "dense class": error_of(lambda: ViTForImageClassification.from_pretrained("vit")),
    "dense class with teacher": error_of(lambda: DeiTForImageClassificationWithTeacher.from_pretrained("teacher")),
    "Auto class": error_of(lambda: AutoModelForImageClassification.from_pretrained("vit")),
    "Auto backbone": error_of(lambda: AutoModel.from_pretrained("vit")),
}
tensors = {}
for folder in ("vit", "teacher", "joint", "heads", "tokens"):
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    results[f"class of {folder}"] = type(model).__name__
    tensors[folder] = model(pixels).logits
    model.save_pretrained(f"{folder}-again")
again = AutoModelForImageClassification.from_pretrained("vit-again", trust_remote_code=True)
tensors["vit, saved again"] = again(pixels).logits
tensors["backbone"] = AutoModel.from_pretrained("vit", trust_remote_code=True)(pixels).last_hidden_state
results["package imported"] = any(name.split(".")[0] == "hf_vitcompress" for name in sys.modules)
torch.save(tensors, "tensors.pt")
json.dump(results, open("results.json", "w"))
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """What a fresh interpreter without the package makes of two checkpoints."""
    folder = tmp_path_factory.mktemp("clean")
    models = {
        "vit": factored(),
        "teacher": factored(DeiTForImageClassificationWithTeacher),
        "joint": formed("all at once"),
        "heads": formed("fewer heads of narrow values on a shared down", DeiTForImageClassification),
        "tokens": merged_model(formed("all at once"), {"vit.layers.0": 5}),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    torch.save(pixels, folder / "pixels.pt")
    run_script(CLEAN_SCRIPT, folder, {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")})
    results = json.loads((folder / "results.json").read_text())
    assert results.pop("package imported") is False
    return folder, models, pixels, results, torch.load(folder / "tensors.pt")


@pytest.mark.parametrize("what", ["dense class", "dense class with teacher"])
def test_without_the_package_a_dense_class_says_what_to_install(clean, what):
    assert "pip install hf-vitcompress" in clean[3][what]


@pytest.mark.parametrize("what", ["Auto class", "Auto backbone"])
def test_without_the_package_an_auto_class_asks_for_trust_remote_code(clean, what):
    assert "trust_remote_code" in clean[3][what]


@pytest.mark.parametrize("name", ["vit", "teacher", "joint", "heads", "tokens"])
def test_without_the_package_trusted_code_gives_identical_logits(clean, name):
    _, models, pixels, results, tensors = clean
    assert results[f"class of {name}"] == type(models[name]).__name__
    with torch.no_grad():
        assert torch.equal(tensors[name], models[name](pixels).logits)


def test_without_the_package_trusted_code_gives_the_backbone_of_a_headed_checkpoint(clean):
    _, models, pixels, _, tensors = clean
    with torch.no_grad():
        assert torch.equal(tensors["backbone"], models["vit"].vit(pixels).last_hidden_state)


@pytest.mark.parametrize("name", ["vit", "teacher", "joint", "heads", "tokens"])
def test_what_trusted_code_saves_is_a_checkpoint_like_any_other(clean, name):
    folder, models, pixels, _, tensors = clean
    loaded = AutoModelForImageClassification.from_pretrained(folder / f"{name}-again")
    assert type(loaded) is type(models[name])
    assert_same_outputs(models[name], loaded, pixels)
    assert torch.equal(tensors["vit, saved again"], tensors["vit"])
    for file in TRAVELLING_FILES:
        assert (folder / f"{name}-again" / file).read_bytes() == (folder / name / file).read_bytes()


@pytest.mark.parametrize("name", TRAVELLING_FILES)
def test_the_code_files_need_nothing_but_torch_and_transformers_and_one_another(tmp_path, name):
    path = shutil.copy(REPOSITORY / "hf_vitcompress" / name, tmp_path / name)
    needed = set(transformers.dynamic_module_utils.get_imports(path)) - set(sys.stdlib_module_names)
    assert needed <= {"torch", "transformers"}
    relative = {f"{module}.py" for module in transformers.dynamic_module_utils.get_relative_imports(path)}
    assert relative <= set(TRAVELLING_FILES) - {name}
