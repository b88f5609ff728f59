"""Which models are published and how they come back; nothing private is."""

import copy
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ViTModel,
)

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.configuration_factored import TRAVELLING_FILES
from hf_vitcompress.publish.push import push_folder
from support.adapters import require_peft
from support.clean_interpreter import run_script
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.models import TINY, seeded, tiny_config
from support.published import PUBLISHED, TELL_TALE, TOKEN, Made, card_of, contents
from support.pushing import PIXELS, edit_local, edit_remote, load, logits, with_words
from support.students import random_images


@pytest.mark.parametrize("damage", [None, "{"], ids=["missing", "damaged"])
def test_without_a_report_the_card_of_the_folder_goes(
    hub: FakeHub, folder: Path, damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "compression_report.json").unlink()
    if damage is not None:
        (folder / "compression_report.json").write_text(damage)
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n# Mine\n")
    push_folder(folder, "me/x")
    assert hub.files("me/x")["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"
    assert "without a card of ours" in caplog.text
    assert ("is damaged" in caplog.text) == (damage is not None)
    edit_remote(hub, ("# Mine", "# Edited"))
    push_folder(folder, "me/x")
    assert b"# Edited" in hub.files("me/x")["README.md"]


def test_a_dense_checkpoint_can_be_published(hub: FakeHub, made: Made) -> None:
    push_folder(made.dense, "me/dense")
    assert hub.files("me/dense").keys() == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}


def test_adapters_are_published_alone(hub: FakeHub, made: Made) -> None:
    peft = require_peft()
    model = copy.deepcopy(made.model)
    model.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear"))
    model.push_to_hub("me/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= hub.files("me/adapter").keys()
    assert "model.safetensors" not in hub.files("me/adapter")


def test_it_loads_from_the_hub(hub: FakeHub, made: Made) -> None:
    made.model.push_to_hub("me/x")
    assert torch.equal(logits(load("me/x")), logits(made.model))
    assert AutoImageProcessor.from_pretrained("me/x").size == {"height": 16, "width": 16}


@pytest.mark.parametrize(
    ("dense", "config", "auto"),
    [
        (ViTModel, tiny_config(), AutoModel),
        (DeiTForImageClassification, DeiTConfig(**TINY), AutoModelForImageClassification),
    ],
)
def test_models_without_a_head_and_of_another_kind(hub: FakeHub, dense: Any, config: Any, auto: Any) -> None:
    recipe = CompressionConfig(keep_ratio=0.6, rank_multiple=1, measuring_images=0, precision="float32")
    small = ViTCompressor(recipe, progress=False).compress(seeded(dense, config), random_images(24))
    cast(Any, small).push_to_hub("me/x")
    assert hub.files("me/x").keys() == PUBLISHED - {"preprocessor_config.json"}
    loaded = auto.from_pretrained("me/x")
    assert type(loaded) is type(small)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(PIXELS)[0], small.eval()(PIXELS)[0])


def test_a_model_of_the_hub_is_compressed_and_published_with_its_terms(hub: FakeHub, made: Made) -> None:
    hub.add_repo("someone/vit", contents(made.dense))
    recipe = CompressionConfig(keep_ratio=0.6, rank_multiple=1, measuring_images=0, precision="float32")
    small = ViTCompressor(recipe, progress=False).compress("someone/vit", str(made.images))
    cast(Any, small).push_to_hub("me/x")
    card = card_of(hub.files("me/x"))
    assert "This is [`someone/vit`](https://huggingface.co/someone/vit), compressed" in card.text
    expected = {"base_model": "someone/vit", "license": "mit", "datasets": ["someone/shapes"], "language": ["en"]}
    assert expected.items() <= card.metadata.items()


def test_a_model_of_the_hub_takes_everything_along_to_another_place(hub: FakeHub, made: Made) -> None:
    made.model.push_to_hub("me/x")
    edit_remote(hub, *with_words("above", "below"), ("license: mit", "license: mit\nwidget: [{src: a.png}]"))
    load("me/x").push_to_hub("me/y")
    one, two = hub.files("me/x"), hub.files("me/y")
    assert {**one, "README.md": b""} == {**two, "README.md": b""}
    card = card_of(two)
    assert card.text.startswith("above")
    assert card.metadata["widget"] == [{"src": "a.png"}]
    assert 'from_pretrained("me/y")' in card.text
    assert "me/x" not in str(card)
    assert card.metadata["model-index"][0]["name"] == "y"
    assert len(card.metadata["model-index"][0]["results"]) == 1


def test_a_model_of_a_folder_takes_everything_along(hub: FakeHub, folder: Path) -> None:
    edit_local(folder, *with_words("above", "below"))
    load(folder).push_to_hub("me/y")
    assert hub.files("me/y").keys() == PUBLISHED
    assert card_of(hub.files("me/y")).text.startswith("above")


CLEAN_SCRIPT = """
import sys
sys.modules["hf_vitcompress"] = None  # as if it were not installed

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("me/x", trust_remote_code=True)
assert AutoImageProcessor.from_pretrained("me/x").size["height"] == 16
torch.save(model(torch.load("pixels.pt")).logits.detach(), "logits.pt")
model.push_to_hub("me/from-elsewhere")
model.save_pretrained("saved", push_to_hub=True, repo_id="me/saved-elsewhere")
"""


def test_it_loads_and_is_pushed_where_the_package_is_not(hub: FakeHub, made: Made, tmp_path: Path) -> None:
    made.model.push_to_hub("me/x")
    assert set(TRAVELLING_FILES) <= hub.files("me/x").keys()
    torch.save(PIXELS, tmp_path / "pixels.pt")
    run_script(CLEAN_SCRIPT, tmp_path, hub.environment())
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(made.model))
    for repo in ("me/from-elsewhere", "me/saved-elsewhere"):  # by transformers itself
        assert {"config.json", "model.safetensors", "README.md", *TRAVELLING_FILES} <= hub.files(repo).keys()
        assert "compression_report.json" not in hub.files(repo)
        assert torch.equal(logits(load(repo)), logits(made.model))


def test_a_checkpoint_whose_code_is_one_file_is_published_with_that(hub: FakeHub, folder: Path) -> None:
    """As those that were made before there were several."""
    later = {"configuration_factored.py", "layers_factored.py", "tokens_factored.py"}
    for name in later:
        (folder / name).unlink()
    push_folder(folder, "me/x")
    assert hub.files("me/x").keys() == PUBLISHED - later


def test_nothing_private_is_published(hub: FakeHub, made: Made, folder: Path) -> None:
    made.model.push_to_hub("me/x")
    push_folder(folder, "me/y", max_shard_size="20KB")
    load(folder).push_to_hub("me/z")
    secret = {TELL_TALE, TOKEN, hub.token()}
    surroundings = {str(Path.home()), os.uname().nodename, tempfile.gettempdir(), str(folder.parent)}
    for repo in ("me/x", "me/y", "me/z"):
        for name, content in hub.files(repo).items():
            is_text = not name.endswith((".safetensors", ".png"))
            for word in secret | {word for word in surroundings if is_text and len(word) >= 4}:
                assert word.encode() not in content, (repo, name, word)
