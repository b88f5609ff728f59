"""Damaged and hostile model folders: one error of ours, whatever the libraries raise there."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_vitcompress.errors import DataError, UnsupportedModelError
from hf_vitcompress.model.boundary import first_line
from hf_vitcompress.model.loading import load_image_processor, load_model
from support.factored import formed
from support.models import TINY, seeded

LAYER = "layers.0.mlp.fc1"
DEEP = 100_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a dense and of a compressed model, each with an image processor."""
    root = tmp_path_factory.mktemp("saved")
    seeded(ViTForImageClassification, ViTConfig(**TINY)).save_pretrained(root / "dense")
    formed("all at once").save_pretrained(root / "compressed")
    for folder in root.iterdir():
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return root


def refused(folder: Path) -> str:
    with pytest.raises(UnsupportedModelError) as found:
        load_model(folder, Accelerator(cpu=True))
    said = str(found.value)
    assert folder.name in said
    assert "\n" not in said
    assert "\x1b" not in said
    return said


CONTENTS = {
    "a list": "[1, 2]",
    "text": '"vit"',
    "null": "null",
    "a number": "3",
    "nothing": "",
    "no JSON": "{a",
    "bytes": "\udcff\udcfe",
    "deep lists": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "no model type": "{}",
    "NaN": '{"model_type": "vit", "hidden_size": NaN}',
}


@pytest.mark.parametrize("kind", ["dense", "compressed"])
@pytest.mark.parametrize("content", CONTENTS)
def test_a_config_that_is_none_is_refused(content: str, kind: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / kind, tmp_path / "model"))
    (folder / "config.json").write_bytes(CONTENTS[content].encode(errors="surrogateescape"))
    refused(folder)


VALUES: list[tuple[str, Any]] = [
    ("model_type", 5),
    ("model_type", ["vit"]),
    ("architectures", "ViTModel"),
    ("hidden_size", -32),
    ("hidden_size", 10**7),
    ("num_hidden_layers", 10**4),
    ("num_attention_heads", 0),
    ("num_attention_heads", [4]),
    ("patch_size", 0),
    ("hidden_act", "never heard of"),
    ("id2label", 3),
    ("dtype", "float33"),
    ("layer_norm_eps", "small"),
    ("attn_implementation", "unknown"),
    ("quantization_config", 3),
    ("quantization_config", {"quant_method": "gptq"}),
    ("auto_map", 3),
]


OF_BOTH = [(*case, kind) for case in VALUES for kind in ("dense", "compressed")]
OF_BOTH.append(("compression", [1], "compressed"))


@pytest.mark.parametrize(("key", "value", "kind"), OF_BOTH)
def test_a_value_that_the_architecture_cannot_use_is_refused(
    key: str, value: Any, kind: str, saved: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved / kind, tmp_path / "model"))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, key: value}))
    refused(folder)


SHAPES: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"{key} {value!r}": lambda c, key=key, value=value: c["layers"][LAYER].update({key: value})
        for key, values in {
            "rank": ["7", 7.0, -1, 0, True, None, [7], 3, 10**9, 10**30, float("nan")],
            "out_features": ["40", 0, 10**6],
            "qk_rank": [3],
            "else": [1],
        }.items()
        for value in values
    },
    **{
        f"qk_rank {v!r} of attention": lambda c, v=v: c["layers"]["layers.0.attention"].update(qk_rank=v)
        for v in (0, "6", 10**10)
    },
    "an unknown layer": lambda c: c["layers"].update(nothing={"rank": 2}),
    "the model itself": lambda c: c["layers"].update({"": {"rank": 2}}),
    "dots": lambda c: c["layers"].update({"...": {"rank": 2}}),
    "an attribute": lambda c: c["layers"].update({"__class__": {"rank": 2}}),
    "a shape that is a list": lambda c: c["layers"].update({LAYER: [1]}),
    "layers that are a list": lambda c: c.update(layers=[1]),
    "no layers": lambda c: c.pop("layers"),
    "a version that is text": lambda c: c.update(version="x"),
    "a version to come": lambda c: c.update(version=99),
    "guards that are a list": lambda c: c.update(guarded=[1]),
    "other guards": lambda c: c.update(guarded={"a.b.c": 3, "": 1}),
    "a target that is a number": lambda c: c.update(target=3),
    "nothing": lambda c: c.clear(),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_compression_that_was_edited_is_refused(case: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "compressed", tmp_path / "model"))
    content = json.loads((folder / "config.json").read_text())
    SHAPES[case](content["compression"])
    (folder / "config.json").write_text(json.dumps(content))
    refused(folder)


class Code:
    """Prints when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def cut(folder: Path, count: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:count])


def as_pickle(folder: Path, content: Any, save: Callable[[Any, Path], Any] = torch.save) -> None:
    (folder / "model.safetensors").unlink()
    save(content, folder / "pytorch_model.bin")


def with_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)


def emptied(folder: Path) -> None:
    save_file({}, folder / "model.safetensors", metadata={"format": "pt"})


WEIGHTS: dict[str, Callable[[Path], object]] = {
    **{f"cut after {count}": lambda folder, count=count: cut(folder, count) for count in (0, 7, 9, 100, -1, -1000)},
    "a header of any length": lambda f: (f / "model.safetensors").write_bytes((2**62).to_bytes(8, "little")),
    "a header that is no JSON": lambda f: (f / "model.safetensors").write_bytes(b'\x10\0\0\0\0\0\0\0{"__metadata__":1'),
    "no tensors": emptied,
    "a pickle with code": lambda f: as_pickle(f, {"a": Code()}),
    "a plain pickle with code": lambda f: as_pickle(f, Code(), lambda c, path: path.write_bytes(pickle.dumps(c))),
    "a pickle of no tensors": lambda f: as_pickle(f, [1, 2]),
    "an index that is a list": lambda f: with_index(f, "[]"),
    "an index that is no JSON": lambda f: with_index(f, "{"),
    "an index of nothing": lambda f: with_index(f, '{"weight_map": null}'),
    "an index of numbers": lambda f: with_index(f, '{"metadata": {}, "weight_map": {"a": 3}}'),
    "a missing shard": lambda f: with_index(
        f, '{"metadata": {}, "weight_map": {"a": "model-00002-of-00002.safetensors"}}'
    ),
    "none": lambda f: (f / "model.safetensors").unlink(),
    "a folder": lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
    "those of an adapter": lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none_are_refused(
    case: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(saved / "dense", tmp_path / "model"))
    WEIGHTS[case](folder)
    refused(folder)
    assert "unpickled" not in capsys.readouterr().out


def test_weights_in_a_pickle_of_tensors_are_read(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "dense", tmp_path / "model"))
    as_pickle(folder, load_file(folder / "model.safetensors"))
    assert isinstance(load_model(folder, Accelerator(cpu=True)), ViTForImageClassification)


@pytest.mark.parametrize("name", ["", " ", "a\0b", "a\nb", "x" * 5000, "https://huggingface.co/x/y"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as found:
        load_model(name)
    assert "\n" not in str(found.value)
    assert "\0" not in str(found.value)


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    assert "no config.json" in refused(tmp_path)


@pytest.mark.parametrize("name", ["./absent", "~/absent", "absent/", "a/b/absent", "absent/config.json"])
def test_a_name_that_can_only_be_of_this_disk_says_that_it_is_absent(name: str) -> None:
    with pytest.raises(UnsupportedModelError) as found:
        load_model(name)
    assert str(found.value) == f"There is no folder {name!r}."


@pytest.mark.parametrize("name", ["absent", "owner/absent", "owner/vit_base.v2"])
def test_a_name_that_may_be_on_the_hub_says_both(name: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"^There is no folder '{name}', and as a model on the Hub .*Hub id"
    ):
        load_model(name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_is_refused_with_its_folder(file: str, saved: Path) -> None:
    said = f"is a file. Give its folder, {str(saved / 'dense')!r}."
    with pytest.raises(UnsupportedModelError, match=re.escape(said)):
        load_model(saved / "dense" / file)


PROCESSORS = [
    "[]",
    "[" * DEEP,
    "{",
    "3",
    "",
    '{"image_processor_type": 3}',
    '{"image_processor_type": "ViTImageProcessor", "size": "x"}',
]


@pytest.mark.parametrize("content", PROCESSORS, ids=range(len(PROCESSORS)))
def test_a_damaged_image_processor_is_named(content: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "dense", tmp_path / "model"))
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(UnsupportedModelError, match=r"image processor beside .* is damaged"):
        load_image_processor(folder)


def test_an_image_processor_of_an_unknown_class_matters_to_pictures_alone(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "dense", tmp_path / "model"))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "NeverHeardOf"}')
    with pytest.raises(DataError, match="NeverHeardOf, which this version of transformers lacks"):
        load_image_processor(folder)(images=[])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("No such file.\nmore"), "No such file."),
        (ValueError(), "ValueError."),
        (KeyError("x"), "KeyError: 'x'."),
        (RuntimeError("\x1b[1mbold\x1b[0m words"), "RuntimeError: bold words."),
        (ValueError("Validation error for 'a':\n  it is b"), "Validation error for 'a': it is b."),
        (ValueError("x" * 400), "x" * 300 + "…."),
    ],
)
def test_what_libraries_say_becomes_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
