"""Every block of code in README, CONTRIBUTING and docs runs, or its page says why not.

Each page is read in a folder of its own, in which the names of `docs/index.md` stand for the digits model of
`examples/`, tiny random models, and a few dozen of the digits. Five minutes there are a second here.
"""

import functools
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedModel, ViTImageProcessorPil

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.architectures.families import FAMILIES
from hf_vitcompress.durations import Duration
from hf_vitcompress.layers_factored import ATTENTIONS
from hf_vitcompress.planning import latency
from support import my_vit
from support.blocks import PAGES, Block, Reader, blocks_of, name_of
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.larger import TOWERS
from support.models import DIGITS, REPOSITORY, seeded
from support.profiles import latency_by_macs
from support.timm_models import tiny_timm

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # what peft reads
    pytest.mark.filterwarnings("ignore::hf_vitcompress.errors.BudgetWarning"),  # the digits model has few plans
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),  # a Trainer without a GPU
]

NOT_RUN = {"CONTRIBUTING.md": ["serves until it is stopped"]}
"""Page → reasons, of the blocks that are not run."""

LANGUAGES = {"python", "bash", "yaml", "text"}
MAKES_SMALL = re.compile(r'(?:--output |save_pretrained\("|output_dir=")small/?["\s]')
"""A page that makes the folder itself does not find it there."""

OUTPUT = re.compile(r"--output (\S+)")

DENSE = ("MODEL", "facebook/deit-base-patch16-224", "google/vit-base-patch16-224")
TIMM = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SPEED = 300
"""So many times as fast as the pages say, minutes are over."""

FEWER: dict[str, Any] = {"measuring_images": 0, "held_out_images": 8}
"""Settings where a page gives none: the photos are few."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the names in the pages stand for, to be copied: models, photos, a data set, and `small`."""
    place = tmp_path_factory.mktemp("pages")
    for name in DENSE:
        shutil.copytree(DIGITS / "model", place / name)
    clip = seeded(CLIPModel, CLIPConfig(**TOWERS))
    clip.save_pretrained(place / "openai/clip-vit-base-patch32")
    size = {"height": 16, "width": 16}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(place / "openai/clip-vit-base-patch32")
    save_digits("calibration.parquet", 32, place / "photos")
    save_digits("test.parquet", 24, place / "test")
    (place / "ethz/food101").mkdir(parents=True)
    shutil.copy(DIGITS / "calibration.parquet", place / "ethz/food101/train.parquet")
    small(place / "photos").save_pretrained(place / "small")
    my_vit.register()
    my_vit.tiny().save_pretrained(place / "my-vit")
    ViTImageProcessorPil(size=size).save_pretrained(place / "my-vit")
    return place


def save_digits(parquet: str, count: int, folder: Path) -> None:
    """The first `count` images, as files in a subfolder for each class."""
    rows = datasets.Dataset.from_parquet(str(DIGITS / parquet)).cast_column("image", datasets.Image(decode=False))
    names = rows.features["label"].names
    for number, row in enumerate(rows.select(range(count))):
        path = folder / names[row["label"]] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"]["bytes"])


def small(photos: Path) -> PreTrainedModel:
    config = CompressionConfig(keep_ratio=0.5, **FEWER)
    return ViTCompressor(config, progress=False).compress(DIGITS / "model", photos)


@pytest.fixture
def reader(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    folder = tmp_path / "reader"
    shutil.copytree(place, folder)
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(Duration, "minutes", property(minutes_here))
    monkeypatch.setattr(CompressionConfig, "__init__", functools.partialmethod(CompressionConfig.__init__, **FEWER))
    monkeypatch.setitem(sys.modules, "my_vit", my_vit)
    monkeypatch.setattr(
        latency, "alternate_latency", latency_by_macs
    )  # tiny models are no faster when they are smaller
    families, attentions = dict(FAMILIES), dict(ATTENTIONS)
    yield Reader(folder, monkeypatch)
    for table, before in ((FAMILIES, families), (ATTENTIONS, attentions)):
        for name in table.keys() - before.keys():
            del table[name]


def minutes_here(duration: Duration) -> float | None:
    return duration.value / SPEED if duration.unit == "minutes" else None


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.reason is None]


WITH_CODE = [page for page in PAGES if any(block.language != "text" for block in runnable(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_blocks_of_a_page_run_one_after_the_other(
    page: Path, reader: Reader, request: pytest.FixtureRequest
) -> None:
    blocks = runnable(page)
    code = "".join(block.code for block in blocks)
    if "push" in code:
        request.getfixturevalue("hub")
    if MAKES_SMALL.search(code):
        shutil.rmtree(reader.folder / "small")
    if "timm" in code:
        save_timm_model(reader.folder / TIMM)
    for block in blocks:
        reader.run(block)


def save_timm_model(folder: Path) -> None:
    """A tiny one, in timm's format; where timm is missing, the page is not run."""
    model = tiny_timm("vit_tiny_patch16_224", patch_size=8, num_classes=10)
    sys.modules["timm"].models.save_for_hf(model, str(folder), safe_serialization=True, model_args={"patch_size": 8})


def test_no_command_writes_where_another_has_written() -> None:
    """Whoever follows several pages in one folder would be refused."""
    bash = [block.code for page in PAGES for block in runnable(page) if block.language == "bash"]
    written = Counter(name.rstrip("/") for code in bash for name in OUTPUT.findall(code))
    assert written
    assert [name for name, count in written.items() if count > 1] == []


def test_blocks_that_are_not_run_are_known_and_say_why() -> None:
    found = {name_of(page): [block.reason for block in blocks_of(page) if block.reason] for page in PAGES}
    assert {page: reasons for page, reasons in found.items() if reasons} == NOT_RUN


def test_every_block_says_its_language() -> None:
    for page in PAGES:
        fences = page.read_text(encoding="utf-8").count("\n```")
        blocks = blocks_of(page)
        assert fences == 2 * len(blocks), f"{name_of(page)} has a fence that is not a block"
        assert {block.language for block in blocks} <= LANGUAGES


def test_there_is_code_of_every_kind_to_run() -> None:
    """The tests above would pass on pages without any."""
    kinds = Counter(block.language for page in PAGES for block in runnable(page))
    assert kinds["python"] > 25
    assert kinds["bash"] > 25
