"""What is saved beside the weights of a model, wherever they go.

A factored model writes its `companions` itself. A class of transformers knows of none, and its models get a
`save_pretrained` of their own.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import PushToHubMixin

from ..modeling_factored import HUB_SETTINGS
from .assembly import is_factored


def companions_of(model: PreTrainedModel) -> list[Any]:
    """The objects whose `save_pretrained(folder)` is called when the model is saved."""
    return list(getattr(model, "companions", []))


def beside_dense(companions: Sequence[Any]) -> list[Any]:
    """What of them goes with the dense form of a model: what it is used with, and nothing about its compression.

    A companion that is not all for that has a method `beside_dense`, which gives the part that is, or `None`.
    """
    own = [companion.beside_dense() if hasattr(companion, "beside_dense") else companion for companion in companions]
    return [companion for companion in own if companion is not None]


def give_companions(model: PreTrainedModel, companions: Sequence[Any]) -> None:
    """Let `model.save_pretrained` write these from now on, of whatever class the model is."""
    if companions:
        model.companions = list(companions)  # type: ignore[assignment]
        if not is_factored(model):
            model.save_pretrained = SaveWithCompanions(model)  # type: ignore[method-assign]


@dataclass(eq=False)
class SaveWithCompanions:
    """Stands in for the `save_pretrained` of one model; copies and pickles of the model have their own."""

    model: PreTrainedModel

    def __call__(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        model, save = self.model, type(self.model).save_pretrained
        if is_factored(model):  # it has become one since, which writes them itself
            save(model, save_directory, *args, **kwargs)
            return
        pushes = kwargs.pop("push_to_hub", False)
        settings = {name: kwargs.pop(name) for name in HUB_SETTINGS if pushes and name in kwargs}
        save(model, save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True) and not getattr(model, "_hf_peft_config_loaded", False):
            for companion in companions_of(model):
                companion.save_pretrained(save_directory)
        if pushes:
            repo_id = settings.pop("repo_id", os.path.basename(os.path.abspath(save_directory)))
            PushToHubMixin.push_to_hub(model, repo_id, **settings)
