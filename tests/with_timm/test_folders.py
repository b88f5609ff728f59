"""Models of timm in folders, on the Hub and in the terminal: in, through every command, and published."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.configuration_factored import travelling_files
from hf_vitcompress.evaluation.labels import checked_labels
from hf_vitcompress.images import open_images
from hf_vitcompress.model.loading import load_image_processor, load_model
from hf_vitcompress.model.subject import open_subject
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.pictures import CLASSES, in_folders
from support.published import card_of
from support.terminal import Run, running_commands  # noqa: F401  (the fixture "run")

pytest.importorskip("timm", reason="timm is not installed here; `make test-torchvision` runs this part")

import timm

from support.timm_models import VIT, wrapper

# The models here were never trained.
pytestmark = pytest.mark.filterwarnings("ignore:.*no better than guessing:hf_vitcompress.errors.DataWarning")

FEWER = {"keep_ratio": 0.7, "measuring_images": 0, "fisher_probes": 1, "rank_multiple": 1}
FLAGS = ["--measuring-images", "0", "--fisher-probes", "1", "--rank-multiple", "1"]
SIZE = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "img_size": 32}
CARD = "---\nlicense: apache-2.0\nlibrary_name: timm\ntags: [timm]\n---\n# The dense one\n"


def module(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(VIT, pretrained=False, **{**SIZE, "num_classes": 3, **arguments}).eval()


def save_as_timm(folder: Path, model: Any, **about: Any) -> Path:
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_config=about, model_args=SIZE)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder in timm's own format, with names of classes."""
    return save_as_timm(tmp_path / "own", module(), label_names=list(CLASSES))


@pytest.fixture
def photos(tmp_path: Path, pictures: list[Image.Image]) -> Path:
    return in_folders(tmp_path / "photos", pictures, [i % 3 for i in range(len(pictures))])


def logits(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(pixels)
    return found if isinstance(found, torch.Tensor) else found.logits


PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_folder_in_timms_own_format_is_loaded(own: Path) -> None:
    settings = json.loads((own / "config.json").read_text())
    settings["model_args"]["num_classes"] = 3  # as timm 1.0.31 writes it, and earlier ones do not
    settings["pretrained_cfg"]["input_size"] = [3, 224, 224]  # as earlier ones write it
    (own / "config.json").write_text(json.dumps(settings))
    assert load_image_processor(own).data_config["input_size"] == (3, 32, 32)
    model = load_model(own)
    assert torch.equal(logits(model, PIXELS), logits(module(), PIXELS))
    assert list(model.config.id2label.values()) == list(CLASSES)


def test_every_command_takes_it(own: Path, photos: Path, tmp_path: Path, run: Run) -> None:
    small, statistics, plan = tmp_path / "small", tmp_path / "statistics", tmp_path / "plan.json"
    for command in (
        ["inspect", own, "--data", photos, "--statistics", statistics, *FLAGS, "-q", "--figure", tmp_path / "i.png"],
        ["plan", own, "--statistics", statistics, "--keep-ratio", "0.7", "-o", plan, *FLAGS],
        ["compress", own, "--data", photos, "-o", small, "--statistics", statistics, "--plan", plan, *FLAGS, "-q"],
        ["evaluate", small, "--data", photos, "--against", own, "--update-card", "-q"],
        ["evaluate", own, "--data", photos, "-q"],
        ["quantize", small, "-o", tmp_path / "integers", "-q"],
    ):
        done = run(*command)
        assert done.code == 0, (command[0], done.err)
        assert "backend" not in done.err
    loaded = load_model(small)
    assert list(loaded.config.id2label.values()) == list(CLASSES)
    assert "by name (3 of 3 classes)" in (small / "README.md").read_text()
    classify = transformers.pipeline("image-classification", model=str(small), device="cpu")
    assert {found["label"] for found in classify(Image.new("RGB", (40, 40)))} == set(CLASSES)


def test_a_model_on_the_hub_is_compressed_and_published(hub: FakeHub, own: Path, photos: Path, run: Run) -> None:
    hub.add_repo("timm/vit_tiny", {"README.md": CARD.encode(), **{f.name: f.read_bytes() for f in own.iterdir()}})
    small = own.parent / "small"
    done = run("compress", "timm/vit_tiny", "--data", photos, "-o", small, *FLAGS, "-q")
    assert done.code == 0, done.err
    assert run("push", small, "me/x", "-q").code == 0
    files = hub.files("me/x")
    assert files.keys() >= {*travelling_files("timm_vit"), "config.json", "model.safetensors", "README.md"}
    card = card_of(files)
    stated = {name: card.metadata[name] for name in ("base_model", "license", "library_name", "pipeline_tag")}
    assert stated == {
        "base_model": "timm/vit_tiny",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
    }
    assert "timm" in card.metadata["tags"]
    loaded = transformers.AutoModelForImageClassification.from_pretrained("me/x")
    assert torch.equal(logits(loaded, PIXELS), logits(load_model(small), PIXELS))
    processor = transformers.AutoImageProcessor.from_pretrained("me/x")
    assert processor.data_config["input_size"] == (3, 32, 32)


def test_a_card_says_what_it_is_and_what_it_needs(own: Path, pictures: list[Image.Image], tmp_path: Path) -> None:
    settings = json.loads((own / "config.json").read_text())
    settings["pretrained_cfg"]["license"] = "cc-by-nc-4.0"
    (own / "config.json").write_text(json.dumps(settings))
    ViTCompressor(CompressionConfig(**FEWER), progress=False).compress(own, pictures).save_pretrained(tmp_path / "x")
    card = (tmp_path / "x" / "README.md").read_text()
    for part in (
        f"# {VIT} at ",
        f"a `{VIT}` of timm that is not published",
        'pip install "hf-vitcompress[timm]"',
        "`modeling_timm.py`",
        "`pip install timm`",
        "license: cc-by-nc-4.0",
        "wightman2019timm",
        f"timm {timm.__version__}",
    ):
        assert part in card, part


def test_names_of_imagenet_are_known_and_other_classes_have_numbers(pictures: list[Image.Image]) -> None:
    names = open_subject(module(num_classes=1000)).model.config.id2label
    assert (names[0], names[999]) == ("tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue")
    seven = open_subject(module(num_classes=7)).model
    assert seven.config.id2label[6] == "LABEL_6"
    labelled = [{"image": picture, "label": 3} for picture in pictures[:4]]
    assert list(checked_labels(open_images(labelled), seven).labels) == [3] * 4


def test_a_wrapper_that_transformers_saved_is_taken_too(pictures: list[Image.Image], tmp_path: Path) -> None:
    dense = wrapper(patch_size=8)
    dense.save_pretrained(tmp_path / "wrapper")
    small = ViTCompressor(CompressionConfig(**FEWER), progress=False).compress(tmp_path / "wrapper", pictures)
    small.save_pretrained(tmp_path / "small")
    again = load_model(tmp_path / "small")
    assert again.config.architecture == VIT
    assert torch.equal(logits(again, PIXELS), logits(small, PIXELS))
