"""Image processors that cannot be loaded here: they matter to pictures alone, and their files go along."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, DINOv3ViTConfig, DINOv3ViTModel, PreTrainedModel, ViTModel

from hf_vitcompress import ViTCompressor
from hf_vitcompress.errors import DataError, UnsupportedModelError
from hf_vitcompress.images import open_images
from hf_vitcompress.images.unloaded import UnloadedProcessor
from hf_vitcompress.model.loading import load_image_processor, load_model
from hf_vitcompress.publish.saved import restored_companions
from hf_vitcompress.statistics.identity import PROCESSOR, subject_identity
from support.digits import small_recipe
from support.factored import factored
from support.models import TINY, seeded, tiny_config
from support.terminal import Run, one_line, running_commands  # noqa: F401  (the fixture "run")

SIZE = {"size": {"height": 16, "width": 16}}
FILE = "preprocessor_config.json"


def missing(text: str, **about: str) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise ImportError(text, **about)

    return raise_it


NEEDS = "OddImageProcessor requires the {} library but it was not found in your environment. Check out the …"
LOADING = {
    "torchvision": missing("\n" + NEEDS.format("Torchvision")),
    "opencv-python": missing(NEEDS.format("OpenCV")),
    "timm": missing(NEEDS.format("timm")),
    "scipy": missing("No module named 'scipy'", name="scipy.ndimage"),
}
"""How transformers says it, by what to give pip."""


def first_batch(images: Any, processor: Any) -> torch.Tensor:
    return next(open_images(images).batches(processor, 2)).pixel_values


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A model beside which there is a processor that needs a package."""
    seeded(ViTModel, tiny_config()).save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / FILE).write_text(json.dumps({"image_processor_type": "OddImageProcessor", **SIZE}))
    return tmp_path / "dense"


@pytest.mark.parametrize("package", LOADING)
def test_a_missing_package_is_named_where_pictures_need_it(
    package: str, dense: Path, pictures: list[Image.Image], pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", LOADING[package])
    found = load_image_processor(dense)
    assert torch.equal(first_batch(pixels, found), pixels[:2])
    with pytest.raises(
        DataError, match=rf"dense' \(OddImageProcessor\) needs {package}: `pip install {package}`.*="
    ) as e:
        first_batch(pictures, found)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"image_processor_type": "OddImageProcessor"},
            "is a OddImageProcessor, which this version of transformers lacks",
        ),
        (
            {"image_processor_type": "OddImageProcessor", "auto_map": {"AutoImageProcessor": "odd.OddImageProcessor"}},
            "runs code of its own, which is not run unasked",
        ),
    ],
    ids=["a class that transformers lacks", "code of its own"],
)
def test_other_reasons_are_told_and_nothing_is_run_or_asked(
    settings: dict[str, Any], says: str, dense: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    (dense / FILE).write_text(json.dumps({**settings, **SIZE}))
    (dense / "odd.py").write_text("raise SystemExit('this was run')")
    found = load_image_processor(dense)
    with pytest.raises(DataError, match=says):
        first_batch(pictures, found)
    (tmp_path / "copy").mkdir()
    found.save_pretrained(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / FILE).read_text()) == {**settings, **SIZE}
    assert (tmp_path / "copy" / "odd.py").exists() == ("auto_map" in settings)


def test_the_file_goes_wherever_the_model_goes(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", LOADING["torchvision"])
    small = factored()
    small.companions = [small_recipe().open(dense).processor]  # as compress does
    small.save_pretrained(tmp_path / "small")
    again = load_model(tmp_path / "small")
    again.companions = restored_companions(again)  # as quantize and push do
    again.save_pretrained(tmp_path / "again")
    for folder in ("small", "again"):
        assert json.loads((tmp_path / folder / FILE).read_text()) == json.loads((dense / FILE).read_text())


def test_a_processor_of_the_users_takes_its_place(
    dense: Path, pictures: list[Image.Image], processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", LOADING["torchvision"])
    compressor = ViTCompressor(small_recipe().config, image_processor=processor, progress=False)
    assert compressor.calibrate(dense, pictures).image_shape == (3, 16, 16)


def test_statistics_that_were_measured_where_it_could_be_loaded_are_used_where_it_cannot(dense: Path) -> None:
    """What is not known is not compared."""
    subject = small_recipe().open(dense)
    assert isinstance(subject.processor, UnloadedProcessor)
    assert PROCESSOR not in subject_identity(subject)


def test_evaluating_says_it_too(
    dense: Path, pictures: list[Image.Image], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", LOADING["torchvision"])
    for i in range(2):
        pictures[i].save(tmp_path / f"{i}.png")
    done = run("evaluate", dense, "--data", tmp_path, "--against", dense, "--quiet")
    assert done.code == 1
    assert "needs torchvision: `pip install torchvision`" in one_line(done.err)


def test_a_damaged_file_is_still_damaged(dense: Path) -> None:
    for content in (
        "",
        "[1]",
        '{"image_processor_type": 5}',
        '{"image_processor_type": "ViTImageProcessor", "size": "x"}',
    ):
        (dense / FILE).write_text(content)
        with pytest.raises(UnsupportedModelError, match="damaged"):
            load_image_processor(dense)


def dinov3(folder: Path) -> PreTrainedModel:
    """As it lies on the Hub."""
    values = {name: value for name, value in TINY.items() if name != "num_labels"}
    seeded(DINOv3ViTModel, DINOv3ViTConfig(**values)).save_pretrained(folder)
    (folder / FILE).write_text(json.dumps({"image_processor_type": "DINOv3ViTImageProcessorFast", **SIZE}))
    return load_model(folder)


def test_dinov3_as_published_takes_pictures_with_torchvision_and_tensors_without(
    tmp_path: Path, pictures: list[Image.Image]
) -> None:
    subject = small_recipe().open(dinov3(tmp_path))
    if importlib.util.find_spec("torchvision") is not None:
        assert first_batch(pictures, subject.processor).shape == (2, 3, 16, 16)
        return
    with pytest.raises(DataError, match="needs torchvision: `pip install torchvision`"):
        first_batch(pictures, subject.processor)
