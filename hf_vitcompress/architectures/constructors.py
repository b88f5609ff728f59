"""What a model class takes besides its config."""

import inspect
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def constructor_options(model: PreTrainedModel) -> dict[str, Any]:
    """Constructor arguments that are not in the config."""
    accepted = constructor_arguments(type(model))  # type: ignore[arg-type]  # its classes can be hashed
    options: dict[str, Any] = {}
    if "add_pooling_layer" in accepted:
        options["add_pooling_layer"] = getattr(model, "pooler", None) is not None
    if "use_mask_token" in accepted:
        options["use_mask_token"] = model.get_submodule("embeddings").mask_token is not None
    return options


@cache
def constructor_arguments(model_class: type[nn.Module]) -> set[str]:
    """Names of constructor arguments; a factored class passes on whatever its dense one accepts."""
    constructors = [vars(base)["__init__"] for base in model_class.__mro__ if "__init__" in vars(base)]
    return {name for constructor in constructors for name in inspect.signature(constructor).parameters}
