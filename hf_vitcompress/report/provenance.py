"""Where a compressed model comes from, as far as others may know: never a local path, a user name or a host name."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from huggingface_hub import hf_hub_download, repo_exists, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..modeling_factored import CARD_FILE
from ..runtime.devices import device_name
from ..runtime.weights import disk_bytes, stored_dtypes
from ..version import __version__
from .card_file import Card
from .outside import LANGUAGE, LICENSE, LICENSE_LINK, LICENSE_NAME, REPOSITORY, matching

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Origin:
    """Where the dense model comes from.

    Attributes:
        base_model: Hub id of the dense model; for a local model, the base that its card names; `None` if unknown.
        published: whether the dense model is `base_model` itself (and not derived from it).
        license: licence that its card states; `None` if it states none.
        license_name: name of a licence that the Hub does not list.
        license_link: link to such a licence.
        language: languages that its card states.
        datasets: Hub ids of its training data, as its card states them.
        disk_bytes: size of its weight files; `None` if they are not on this disk.
        dtypes: dtypes of the stored weights, such as F16.
    """

    base_model: str | None = None
    published: bool = False
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    disk_bytes: int | None = None
    dtypes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Origin":
        """The origin of a model that was loaded from a folder or from the Hub; of any other, what its config states."""
        # timm states the licence of the weights there. It names a repository, too, but by whatever they were changed.
        return cls._of_checkpoint(model).completed({"license": _timm_settings(model).get("license")})

    @classmethod
    def _of_checkpoint(cls, model: PreTrainedModel) -> "Origin":
        name = str(model.config.name_or_path or "")
        if name and Path(name).is_dir():
            stated = _from_card(card_data(Path(name) / CARD_FILE))
            size = disk_bytes(name) or None
            return cls(**stated, disk_bytes=size, dtypes=stored_dtypes(name))
        if not is_repo_id(name) or not is_on_hub(name):
            return cls()  # it may be a folder that has been deleted since
        weights = try_to_load_from_cache(name, WEIGHTS_FILE)
        stated = {**_from_card(hub_card_data(name)), "base_model": name, "published": True}
        if not isinstance(weights, str):
            return cls(**stated)
        return cls(**stated, disk_bytes=os.path.getsize(weights), dtypes=stored_dtypes(Path(weights).parent))

    def completed(self, card: Mapping[str, Any]) -> "Origin":
        """A copy whose unknown attributes are taken from the metadata of a card."""
        stated = _from_card(card)
        return replace(self, **{name: value for name, value in stated.items() if not getattr(self, name)})


@dataclass(frozen=True)
class Environment:
    """Hardware and software that made a model.

    Attributes:
        hardware: name of the CPU and the number of threads, or name of the GPU.
        processes: number of processes that shared the work.
        versions: versions of the packages that decide the result.
    """

    hardware: str
    processes: int
    versions: dict[str, str]

    @classmethod
    def here(cls, accelerator: Accelerator, model: PreTrainedModel | None = None) -> "Environment":
        """That of this process, on the accelerator's device, for a model."""
        versions = {
            "hf_vitcompress": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "datasets": version("datasets"),
            "python": platform.python_version(),
        }
        if model is not None and hasattr(model, "timm_model"):
            versions["timm"] = version("timm")
        return cls(device_name(accelerator.device), accelerator.num_processes, versions)


def _timm_settings(model: PreTrainedModel) -> Mapping[str, Any]:
    """What timm says about the weights; empty for other models."""
    return getattr(model.config, "pretrained_cfg", None) or {}


def is_repo_id(name: str) -> bool:
    """Whether `name` can be the id of a Hub repository, and is nothing on this disk."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def is_on_hub(name: str) -> bool:
    """Whether the Hub has a model of this name; the cache answers if it was downloaded, otherwise the Hub."""
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return True
    try:
        return repo_exists(name)
    except Exception:  # no way to the Hub, see `hub_card_data`
        return False


def card_data(path: Path) -> dict[str, Any]:
    """The metadata of the card in a file; empty if there is no card or it cannot be read."""
    try:
        return Card.load(path).metadata
    except OSError:
        return {}


def hub_card_data(repo_id: str) -> dict[str, Any]:
    """The metadata of a card on the Hub; empty if there is no card or the Hub cannot be reached."""
    try:
        return card_data(Path(hf_hub_download(repo_id, CARD_FILE)))
    except Exception:  # the Hub client has no common base class for its errors, and a card is no must
        return {}


def as_list(value: Any) -> list[str]:
    """What card metadata gives as one string or a list of them; whatever else stands there is left out."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


STATED = {"license": LICENSE, "license_name": LICENSE_NAME, "license_link": LICENSE_LINK}
"""What each term of a card looks like; a term that does not is left out."""


def _from_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """What card metadata says about an `Origin`."""
    terms = {key: card[key] for key, pattern in STATED.items() if matching(pattern)(card.get(key))}
    bases = as_list(card.get("base_model"))
    if len(bases) == 1 and is_repo_id(bases[0]):
        terms["base_model"] = bases[0]
    datasets = [name for name in as_list(card.get("datasets")) if is_repo_id(name)]
    language = [code for code in as_list(card.get("language")) if LANGUAGE.fullmatch(code)]
    return {**terms, "language": language, "datasets": datasets}
