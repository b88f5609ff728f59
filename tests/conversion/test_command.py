"""`vitcompress convert`."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, PreTrainedModel

from support.terminal import Run, one_line, without_bars
from support.terminal import running_commands as running_commands

timm = pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` has it")


def test_to_timm_and_back(vit: PreTrainedModel, tmp_path: Path, run: Run) -> None:
    vit.save_pretrained(tmp_path / "vit")
    there = run("convert", tmp_path / "vit", tmp_path / "timm", "--to", "timm")
    assert there.code == 0
    assert "is now a VisionTransformer of timm" in there.out
    assert "note: There is no image processor" in there.out
    back = run("convert", tmp_path / "timm", tmp_path / "again")
    assert back.code == 0
    assert "is now a ViTForImageClassification of transformers" in back.out
    assert (tmp_path / "again" / "preprocessor_config.json").is_file()
    again, images = AutoModelForImageClassification.from_pretrained(tmp_path / "again"), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(again(images).logits, vit(images).logits, atol=1e-5, rtol=1e-5)


def test_another_model_is_not_replaced(vit: PreTrainedModel, tmp_path: Path, run: Run) -> None:
    vit.save_pretrained(tmp_path / "vit")
    vit.save_pretrained(tmp_path / "mine")
    before = (tmp_path / "mine" / "config.json").read_bytes()
    for flags in ([], ["--overwrite"]):
        done = run("convert", tmp_path / "vit", tmp_path / "mine", "--to", "timm", *flags)
        assert done.code == 1
        assert "not written by this package" in one_line(without_bars(done.err))
    assert (tmp_path / "mine" / "config.json").read_bytes() == before


def test_a_result_is_replaced_if_that_is_wanted(vit: PreTrainedModel, tmp_path: Path, run: Run) -> None:
    vit.save_pretrained(tmp_path / "vit")
    command = ["convert", tmp_path / "vit", tmp_path / "timm", "--to", "timm"]
    assert run(*command).code == 0
    assert "--overwrite" in one_line(without_bars(run(*command).err))
    assert run(*command, "--overwrite").code == 0
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["num_classes"] == 5


def test_a_model_that_is_refused_leaves_no_folder(tmp_path: Path, run: Run) -> None:
    module = timm.create_model("xcit_nano_12_p16_224", depth=1)
    timm.models.save_for_hf(module, str(tmp_path / "xcit"), safe_serialization=True)
    done = run("convert", tmp_path / "xcit", tmp_path / "out")
    assert done.code == 1
    assert "a Xcit" in one_line(without_bars(done.err))
    assert not (tmp_path / "out").exists()


def test_an_unknown_library_is_named(tmp_path: Path, run: Run) -> None:
    done = run("convert", tmp_path, tmp_path / "out", "--to", "keras")
    assert "'keras'" in one_line(done.err)
