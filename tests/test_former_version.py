"""Checkpoints, plans, recipes and pickles that an earlier version saved still load and compute what they did.

How they were made is said in `data/former/README.md`.
"""

import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, CompressionPlan, CompressionReport, Statistics
from hf_vitcompress.configuration_factored import TRAVELLING_FILES
from hf_vitcompress.errors import CalibrationError, ConfigWarning
from hf_vitcompress.modeling_factored import compressed_modules
from hf_vitcompress.publish.cards import write_card
from support.clean_interpreter import run_script

FORMER = Path(__file__).parent / "data" / "former"
KINDS = {
    "low_rank": "FactoredViTForImageClassification",
    "pruned": "FactoredViTForImageClassification",
    "joint": "FactoredViTForImageClassification",
    "gated": "FactoredDinov2ForImageClassification",
    "target": "FactoredCLIPModel",
}
"""Folder → class of the model in it."""
OLD_NAMES = {"selector": "criterion"}

every_kind = pytest.mark.parametrize("kind", KINDS)

CLEAN_SCRIPT = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification
found, classes = {}, {}
for kind in json.load(open("kinds.json")):
    auto = AutoModel if kind == "target" else AutoModelForImageClassification
    model = auto.from_pretrained(kind, trust_remote_code=True).eval()
    inputs = load_file(f"{kind}/expected.safetensors")
    del inputs["logits"]
    with torch.no_grad():
        output = model(**inputs)
    found[kind] = (output.logits_per_image if kind == "target" else output.logits).contiguous()
    classes[kind] = type(model).__name__
    model.save_pretrained(f"{kind}-again")
classes["imported"] = [name for name in sys.modules if name.split(".")[0] == "hf_vitcompress"]
save_file(found, "found.safetensors")
json.dump(classes, open("classes.json", "w"))
"""


def restore(root: Path) -> Path:
    """The folders as they were, each with its file of code."""
    for kind in KINDS:
        folder = Path(shutil.copytree(FORMER / kind, root / kind))
        shutil.copy(FORMER / "modeling_factored.py.txt", folder / "modeling_factored.py")
    return root


def loaded(folder: Path) -> PreTrainedModel:
    auto = AutoModel if folder.name.startswith("target") else AutoModelForImageClassification
    return auto.from_pretrained(folder).eval()


def logits(model: PreTrainedModel, kind: str) -> Tensor:
    inputs = load_file(FORMER / kind / "expected.safetensors")
    del inputs["logits"]
    with torch.no_grad():
        output = model(**inputs)
    return output["logits_per_image" if kind == "target" else "logits"]


def assert_as_then(found: Tensor, kind: str) -> None:
    """To rounding, because other processors sum in another order."""
    torch.testing.assert_close(found, load_file(FORMER / kind / "expected.safetensors")["logits"], rtol=1e-4, atol=1e-6)


@every_kind
def test_a_checkpoint_loads_and_computes_what_it_did(kind: str, tmp_path: Path) -> None:
    model = loaded(restore(tmp_path) / kind)
    assert type(model).__name__ == KINDS[kind]
    plan = CompressionPlan.load(FORMER / kind / "compression_plan.json")
    prefix = "vision_model." if kind == "target" else ""
    assert model.config.compression["layers"] == {prefix + name: shape for name, shape in plan.layers.items()}
    assert compressed_modules(model)
    assert_as_then(logits(model, kind), kind)


@every_kind
def test_saved_again_it_is_a_checkpoint_of_today(kind: str, tmp_path: Path) -> None:
    folder = restore(tmp_path) / kind
    loaded(folder).save_pretrained(folder)
    assert {file for file in TRAVELLING_FILES if (folder / file).is_file()} == set(TRAVELLING_FILES)
    assert_as_then(logits(loaded(folder), kind), kind)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders after an interpreter that knows nothing of the package has loaded them, and what it found."""
    root = restore(tmp_path_factory.mktemp("clean"))
    (root / "kinds.json").write_text(json.dumps([*KINDS]))
    run_script(CLEAN_SCRIPT, root, {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")})
    return root


@every_kind
def test_without_the_package_the_code_beside_it_computes_the_same(kind: str, clean: Path) -> None:
    classes = json.loads((clean / "classes.json").read_text())
    assert (classes[kind], classes["imported"]) == (KINDS[kind], [])
    assert_as_then(load_file(clean / "found.safetensors")[kind], kind)


@every_kind
def test_what_the_code_beside_it_saves_loads_too(kind: str, clean: Path) -> None:
    assert_as_then(logits(loaded(clean / f"{kind}-again"), kind), kind)


@every_kind
def test_plan_recipe_and_report_are_read(kind: str) -> None:
    folder = FORMER / kind
    plan, report = CompressionPlan.load(folder / "compression_plan.json"), CompressionReport.load(folder)
    assert plan.layers == {name: shape for part in report.parts for name, shape in part.shapes.items()}
    assert plan.keep_ratio == pytest.approx(report.keep_ratio)
    with pytest.warns(ConfigWarning, match="earlier version"):
        recipe = CompressionConfig.load(folder / "compression_recipe.yaml").to_dict()
    saved = yaml.safe_load((folder / "compression_recipe.yaml").read_text())
    said = {OLD_NAMES.get(name, name): value for name, value in saved.items()}
    assert {name: value for name, value in recipe.items() if name in said and said[name] != value} == {}
    assert said["max_params" if kind != "low_rank" else "keep_ratio"]


def test_durations_of_former_recipes_are_kept() -> None:
    with pytest.warns(ConfigWarning):
        joint = CompressionConfig.load(FORMER / "joint" / "compression_recipe.yaml")
    assert (joint.compensation, str(joint.compensation_duration)) == ("both", "1 epochs")
    with pytest.warns(ConfigWarning):
        pruned = CompressionConfig.load(FORMER / "pruned" / "compression_recipe.yaml")
    assert (pruned.criterion, str(pruned.gate_duration)) == ("gates", "2 epochs")


@every_kind
def test_a_card_is_renewed_from_a_former_report(kind: str, tmp_path: Path) -> None:
    folder = restore(tmp_path) / kind
    (folder / "README.md").write_text("Mine.\n\n" + (folder / "README.md").read_text().partition("---\n\n")[2])
    text = str(write_card(folder))
    assert text.count("<!-- hf_vitcompress: begin") == 1
    assert "Mine." in text


@pytest.mark.skipif(
    not transformers.__version__.startswith("5.23."),
    reason="a pickle is opened by the transformers that made it: the module's attributes are transformers' own",
)
def test_a_pickled_model_is_opened() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = pickle.loads((FORMER / "model.pickle").read_bytes())
    assert type(model).__name__ == KINDS["joint"]
    assert_as_then(logits(model, "joint"), "joint")


def test_former_statistics_are_refused_with_the_reason_and_the_remedy() -> None:
    with pytest.raises(CalibrationError, match=r"Another version .* cannot be checked.*calibration again"):
        Statistics.load(FORMER / "statistics.safetensors")
