"""A compressed folder in timm: what `timm.create_model` makes of it, and what people do with that."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TimmBackbone

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")

from timm.models import get_notrace_functions, get_notrace_modules  # noqa: E402
from timm.optim import param_groups_layer_decay  # noqa: E402
from timm.utils import ModelEmaV3, reparameterize_model  # noqa: E402
from torchvision.models.feature_extraction import create_feature_extractor  # noqa: E402

from hf_vitcompress.configuration_timm import ARCHITECTURE, ENTRY_POINT  # noqa: E402
from hf_vitcompress.errors import UnsupportedModelError  # noqa: E402
from hf_vitcompress.timm import __main__ as runner  # noqa: E402
from support.timm_compressed import ARGUMENTS, BLOCKS, EVA, SWIN, VIT, compressed, pixels  # noqa: E402


@pytest.fixture(scope="module", params=[VIT, SWIN, EVA])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> PreTrainedModel:
    return compressed(name)


@pytest.fixture(scope="module")
def folder(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("small")
    model.save_pretrained(path)
    return f"local-dir:{path}"


@pytest.fixture
def small(folder: str) -> Any:
    return timm.create_model(folder, pretrained=True).eval()


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit")
    compressed(VIT).save_pretrained(path)
    return path


@torch.no_grad()
def answers(model: Any, images: torch.Tensor) -> torch.Tensor:
    result = model(images)
    return result if isinstance(result, torch.Tensor) else result.logits


def test_it_is_timms_own_class_with_timms_names_and_computes_the_same(name, model, small) -> None:
    assert type(small) is type(model.timm_model)  # type: ignore[attr-defined]
    assert small.state_dict().keys() == model.timm_model.state_dict().keys()  # type: ignore[attr-defined]
    assert torch.equal(answers(small, pixels(name)), answers(model, pixels(name)))
    assert small.num_classes == small.pretrained_cfg["num_classes"] == 10


def test_without_the_import_timm_says_what_to_do(folder, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules["timm.models._registry"]._model_entrypoints, ENTRY_POINT)  # type: ignore[attr-defined]
    for pretrained in (True, False):
        with pytest.raises(RuntimeError, match=re.escape(f"Unknown model ({ARCHITECTURE})")):
            timm.create_model(folder, pretrained=pretrained)


def test_the_text_on_disk_is_no_path_to_timm(folder) -> None:
    """Its scripts hand it on as the name of a model."""
    resolved = sys.modules["timm.models._factory"].resolve_model_input_args(folder)  # type: ignore[attr-defined]
    again = timm.create_model(pretrained=True, **resolved)
    assert again.num_classes == 10


def test_a_headless_folder_gives_features(tmp_path) -> None:
    model = compressed(VIT, classes=0)
    model.save_pretrained(tmp_path)
    small = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(small(pixels(VIT)), model(pixels(VIT)).pooler_output)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)(pixels(VIT)).shape == (2, 3)


def test_other_classes_channels_sizes_and_rates(name, folder, small) -> None:
    other = timm.create_model(folder, pretrained=True, num_classes=7, drop_path_rate=0.1).eval()
    assert other(pixels(name)).shape == (2, 7)
    block = f"{BLOCKS[name]}.mlp.fc2.up.weight"
    assert torch.equal(other.state_dict()[block], small.state_dict()[block])
    assert timm.create_model(folder, pretrained=True, in_chans=1)(pixels(name, channels=1)).shape == (2, 10)
    size = 2 * ARGUMENTS[name]["img_size"]
    larger = timm.create_model(folder, pretrained=True, img_size=size)
    assert larger(pixels(name, size=size)).shape == (2, 10)
    assert torch.equal(larger.state_dict()[block], small.state_dict()[block])


def test_random_weights_where_they_are_asked_for(name, folder, small) -> None:
    random = timm.create_model(folder)
    assert random.state_dict().keys() == small.state_dict().keys()
    assert not torch.equal(answers(random.eval(), pixels(name)), answers(small, pixels(name)))
    random.load_state_dict(small.state_dict(), strict=True)
    assert torch.equal(answers(random, pixels(name)), answers(small, pixels(name)))


def test_feature_maps_are_those_of_the_whole_model(name, folder, small) -> None:
    extractor = timm.create_model(folder, pretrained=True, features_only=True, out_indices=(0, 1)).eval()
    dense = timm.create_model(name, features_only=True, out_indices=(0, 1), **ARGUMENTS[name])
    assert type(extractor) is type(dense)
    assert extractor.feature_info.channels() == dense.feature_info.channels()
    with torch.no_grad():
        whole = small.forward_intermediates(pixels(name), indices=(0, 1), output_fmt="NCHW", intermediates_only=True)
        for own, expected in zip(extractor(pixels(name)), whole, strict=True):
            torch.testing.assert_close(own, expected.permute(0, 2, 3, 1) if name == SWIN else expected)


def test_a_backbone_of_transformers(vit) -> None:
    backbone = TimmBackbone.from_pretrained(f"local-dir:{vit}", out_indices=[0, 1]).eval()
    small = timm.create_model(f"local-dir:{vit}", pretrained=True).eval()
    with torch.no_grad():
        maps = backbone(pixels(VIT)).feature_maps
        whole = small.forward_intermediates(pixels(VIT), indices=(0, 1), intermediates_only=True)
    assert all(torch.equal(own, expected) for own, expected in zip(maps, whole, strict=True))


def test_what_timm_saves_timm_opens(name, small, tmp_path) -> None:
    small.reset_classifier(4)
    timm.models.save_for_hf(small, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(answers(again, pixels(name)), answers(small, pixels(name)))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == ARCHITECTURE


def test_the_parts_of_a_forward_pass(name, small) -> None:
    with torch.no_grad():
        features = small.forward_features(pixels(name))
        assert torch.equal(small.forward_head(features), small(pixels(name)))
        if name == VIT:
            (last,) = small.get_intermediate_layers(pixels(name), n=1, norm=True)
            assert torch.equal(last, features[:, 1:])
    assert torch.equal(answers(reparameterize_model(small), pixels(name)), answers(small, pixels(name)))
    small.reset_classifier(0, "avg")
    assert small(pixels(name)).dim() == 2


def test_training_as_in_timm(name, small) -> None:
    groups = param_groups_layer_decay(small, layer_decay=0.5, weight_decay=0.1)
    assert len({group["lr_scale"] for group in groups}) > 2
    assert sum(parameter.numel() for group in groups for parameter in group["params"]) == sum(
        parameter.numel() for parameter in small.parameters()
    )
    ema = ModelEmaV3(small, decay=0.5)
    small.set_grad_checkpointing(True)
    optimizer = torch.optim.SGD(groups, lr=0.1)
    small.train()(pixels(name)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    optimizer.step()
    ema.update(small)
    moved = ema.module.state_dict()
    assert any(not torch.equal(value, moved[key]) for key, value in small.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # of torch.fx, of TorchScript and of timm's own code under them
def test_torch_fx_and_torchscript_follow_it(name, folder, small) -> None:
    expected = answers(small, pixels(name))
    graph = create_feature_extractor(
        small,
        train_return_nodes={"head" if name != SWIN else "head.fc": "y"},
        eval_return_nodes={"head" if name != SWIN else "head.fc": "y"},
        tracer_kwargs={
            "leaf_modules": list(get_notrace_modules()),
            "autowrap_functions": list(get_notrace_functions()),
        },
    )
    with torch.no_grad():
        torch.testing.assert_close(graph(pixels(name))["y"], expected)
    with timm.layers.set_scriptable(True):
        scripted = torch.jit.script(timm.create_model(folder, pretrained=True, scriptable=True).eval())
    torch.testing.assert_close(answers(scripted, pixels(name)), expected)
    traced = torch.jit.trace(small, pixels(name), check_trace=False)
    torch.testing.assert_close(answers(traced, pixels(name)), expected)


def test_another_pooling_is_as_in_the_dense_model(vit) -> None:
    """timm moves the last norm with it, for which there are no weights under its new name."""
    with pytest.raises(UnsupportedModelError, match=r"no fc_norm.*no norm\..*fc_norm=False"):
        timm.create_model(f"local-dir:{vit}", pretrained=True, global_pool="avg")
    pooled = timm.create_model(f"local-dir:{vit}", pretrained=True, global_pool="avg", fc_norm=False)
    assert pooled(pixels(VIT)).shape == (2, 10)
    with pytest.raises(UnsupportedModelError, match="Leave out the arguments"):
        timm.create_model(f"local-dir:{vit}", pretrained=True, reg_tokens=2)


def test_a_folder_that_lacks_tensors_is_refused(vit, tmp_path) -> None:
    weights = load_file(vit / "model.safetensors")
    del weights["timm_model.blocks.0.mlp.fc2.up.weight"]
    for file in vit.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    for classes in (10, 3):
        with pytest.raises(UnsupportedModelError, match=re.escape("blocks.0.mlp.fc2.up.weight")):
            timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=classes)


def test_a_quantized_folder_is_refused(vit, tmp_path) -> None:
    content = json.loads((vit / "config.json").read_text())
    content["quantization_config"] = {"quant_method": "torchao", "quant_type": "int8_weight_only"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UnsupportedModelError, match="quantized"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_the_entry_point_alone_names_no_model() -> None:
    assert ENTRY_POINT in timm.list_models()
    with pytest.raises(UnsupportedModelError, match="local-dir:FOLDER"):
        timm.create_model(ENTRY_POINT)


def test_scripts_are_run_with_their_arguments(vit, tmp_path, monkeypatch) -> None:
    (tmp_path / "beside.py").write_text("import timm\n\ndef opened(name):\n    return timm.create_model(name)\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom beside import opened\n"
        'if __name__ == "__main__":\n    Path("out").write_text(type(opened(sys.argv[1])).__name__)\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.argv", ["-m", str(script), f"local-dir:{vit}"])
    runner.main()
    assert (tmp_path / "out").read_text() == "VisionTransformer"


@pytest.mark.parametrize("words", [[], ["no_such_script.py"]])
def test_a_script_that_is_not_there_is_named(words, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["-m", *words])
    with pytest.raises(SystemExit, match="(?s)" + ".*".join([*words, "usage"])):
        runner.main()
