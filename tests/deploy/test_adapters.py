"""LoRA of PEFT on compressed models: nothing of this package is needed for it, and nothing may stand in its way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel, ViTImageProcessorPil
from transformers.utils import is_torchao_available

from hf_vitcompress import CompressionConfig, ViTCompressor, to_dense
from hf_vitcompress.deploy.quantization import quantize
from hf_vitcompress.errors import UnsupportedModelError
from support.adapters import require_peft
from support.students import METHODS, changed, compressed, lively, logits, random_images, state_of
from support.training import new_trainer

peft = require_peft()

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PIXELS = random_images(16, seed=5)
TARGETS = ["factors", "attention", "all"]
CASES = [(m, target) for m in METHODS for target in TARGETS if (m, target) != ("pruned", "factors")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved compressed model for each method."""
    root = tmp_path_factory.mktemp("models")
    for method, settings in METHODS.items():
        compressed(**settings).student().save_pretrained(root / method)
    return {method: root / method for method in METHODS}


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(folder)


def linears(model: PreTrainedModel) -> list[str]:
    """Names of all that can have an adapter; a factored layer is two of them."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def with_lora(model: PreTrainedModel, target: str = "all", **settings: Any) -> Any:
    attention = [name for name in linears(model) if ".attention." in name]
    modules = {"factors": ["up", "down"], "attention": attention, "all": "all-linear"}[target]
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=modules, **settings))


def train(model: Any, folder: Path) -> None:
    """Eight steps on 32 images."""
    new_trainer(folder, model=model, without_evaluation=True, learning_rate=1e-2).train()


@pytest.mark.parametrize(("method", "target"), CASES)
def test_an_adapter_is_trained_saved_loaded_and_merged(
    method: str, target: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    base = load(folders[method])
    adapted = with_lora(base, target)
    assert torch.equal(logits(adapted, PIXELS), logits(load(folders[method]), PIXELS)), "an adapter begins as nothing"
    before = state_of(adapted)
    train(adapted, tmp_path / "run")
    trained = {name for name in before if "lora_" in name}
    assert changed(before, adapted) == trained != set()

    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted, PIXELS)
    loaded = peft.PeftModel.from_pretrained(load(folders[method]), tmp_path / "adapter")
    assert torch.equal(logits(loaded, PIXELS), expected)

    merged = loaded.merge_and_unload()
    assert type(merged) is type(base)
    assert state_of(merged).keys() == state_of(load(folders[method])).keys()
    torch.testing.assert_close(logits(merged, PIXELS), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged"), PIXELS), logits(merged, PIXELS))
    torch.testing.assert_close(logits(to_dense(merged), PIXELS), expected, rtol=1e-4, atol=1e-5)


def test_all_linear_means_every_factor_and_shared_projection(folders: dict[str, Path]) -> None:
    names = linears(load(folders["default"]))
    assert set(with_lora(load(folders["default"])).targeted_module_names) == set(names)
    assert {name.rpartition(".")[2] for name in names} >= {"up", "down", "qk_down"}


def test_a_classifier_is_trained_beside_the_adapter(folders: dict[str, Path], tmp_path: Path) -> None:
    adapted = with_lora(load(folders["low rank"]), "factors", modules_to_save=["classifier"])
    before = state_of(adapted)
    train(adapted, tmp_path / "run")
    kinds = ("lora_", "modules_to_save")
    assert changed(before, adapted) == {name for name in before if any(kind in name for kind in kinds)}
    expected = logits(adapted, PIXELS)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, PIXELS), expected, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(load(tmp_path / "merged"), PIXELS), logits(merged, PIXELS))


def test_what_lies_beside_the_model_survives_an_adapter(processor: ViTImageProcessorPil, tmp_path: Path) -> None:
    config = CompressionConfig(keep_ratio=0.5, rank_multiple=1, precision="float32")
    small = ViTCompressor(config, processor, progress=False).compress(lively(), random_images(64))
    small.save_pretrained(tmp_path / "small")
    merged = with_lora(small).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    one, other = ({path.name for path in (tmp_path / name).iterdir()} for name in ("small", "merged"))
    assert one == other >= {"preprocessor_config.json", "compression_plan.json"}


# ---- adapters that transformers adds itself


def with_adapter(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = load(folder)
    model.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    return model


def test_an_added_adapter_is_saved_alone_and_loads_its_model(folders: dict[str, Path], tmp_path: Path) -> None:
    model = with_adapter(folders["default"])
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert torch.equal(logits(load(tmp_path), PIXELS), logits(model, PIXELS))


def test_an_adapter_saved_beside_its_model_leaves_that_as_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["default"]).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with_adapter(folders["default"]).save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("use", [quantize, ViTCompressor(CompressionConfig(), progress=False).compress])
def test_a_model_with_an_adapter_is_neither_quantized_nor_compressed(
    use: Callable[..., Any], added: bool, vit: PreTrainedModel
) -> None:
    if added:
        vit.add_adapter(peft.LoraConfig(r=2, target_modules=["fc1"]))
    with pytest.raises(UnsupportedModelError, match=r"has adapters.*merge_and_unload"):
        use(vit if added else with_lora(vit))


# ---- on quantized models


@pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed (pip install torchao)")
def test_an_adapter_of_a_quantized_model_is_trained_saved_and_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    adapted = with_lora(quantize(folders["default"]))
    plain = logits(adapted, PIXELS)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items() if "lora_" in name}
    train(adapted, tmp_path / "run")
    assert not any(torch.equal(before[name], adapted.state_dict()[name]) for name in before)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, PIXELS), plain), "the integers are as they were"
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted, PIXELS)
    loaded = peft.PeftModel.from_pretrained(quantize(folders["default"]), tmp_path / "adapter")
    assert torch.equal(logits(loaded, PIXELS), expected)


@pytest.mark.skipif(not is_torchao_available(), reason="torchao is not installed (pip install torchao)")
def test_a_merged_model_is_quantized_like_any_other(folders: dict[str, Path]) -> None:
    torch.manual_seed(0)
    merged = with_lora(load(folders["default"]), init_lora_weights=False).merge_and_unload()
    expected = logits(merged, PIXELS)
    assert (logits(quantize(merged), PIXELS) - expected).norm() < 0.1 * expected.norm()
