"""What is compressed, and what the model around it reads of it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Reading:
    """The features that a larger model reads from a model inside it, if it does not read its plain output.

    Attributes:
        layers: indices of the hidden states that it reads; empty: it reads the pooled output.
        skipped: number of leading tokens that it leaves out.
    """

    layers: tuple[int, ...] = ()
    skipped: int = 0


@dataclass(frozen=True)
class Subject:
    """A model to be compressed, or one that is held against it, with all that is known of its surroundings.

    Attributes:
        model: what is compressed.
        whole: the model it is part of; itself where it stands alone.
        name: module name of `model` in `whole`; `""` where it stands alone.
        processor: turns raw images into `pixel_values`; `None` where there is none.
        reading: what `whole` reads of `model`; `None`: its output.
        stored: type that the weights of its checkpoint are stored in; `None`: it was given as a loaded model.
    """

    model: PreTrainedModel
    whole: PreTrainedModel
    name: str = ""
    processor: Any = None
    reading: Reading | None = None
    stored: torch.dtype | None = None

    @classmethod
    def alone(cls, model: PreTrainedModel, processor: Any = None) -> "Subject":
        """A model that is part of no other."""
        return cls(model, model, processor=processor)

    def like(self, model: PreTrainedModel) -> "Subject":
        """Another model in the same surroundings, such as the compressed form of this one."""
        return replace(self, model=model)
