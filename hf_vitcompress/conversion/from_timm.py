"""A model of timm becomes one of transformers that computes the same, or is refused."""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..model.companions import give_companions
from ..model.making import MAKING
from ..runtime.random_state import unchanged_random_state
from .processing import processing_of
from .proof import TOLERANCE, largest_difference, random_images, timm_outputs, transformers_outputs
from .reading import timm_class
from .rule import Rule, Traits, matching_rule, not_expressible
from .sources import open_timm
from .state import State, to_transformers
from .table import RULES

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Conversion:
    """A converted model, and how far it is what it was made of.

    Attributes:
        model: with what is saved beside it.
        name: of the model that was converted.
        difference: the largest one of an output, in float32, on random images.
        remarks: what is different to use, and what could not be expressed, as sentences.
        arguments: those of `timm.create_model` that make such a module; of a model of transformers nothing.
    """

    model: Any
    name: str
    difference: float
    remarks: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)


def convert_from_timm(model: Any) -> PreTrainedModel:
    """A model of transformers that computes what a model of timm does.

    Both are run on random images, and a difference larger than rounding is refused. What cannot be expressed, such as a
    way of preparing images, is said in a warning.

    Args:
        model: a Hub id such as `timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k`, a folder in timm's format, a
            TimmWrapper of transformers, or a model of `timm.create_model`; the last two are left as they were.

    Returns:
        the model in evaluation mode, with its weights in the type that they had. `save_pretrained` also writes its
        image processor.

    Raises:
        UnsupportedModelError: no class of transformers computes the same; the message says what it lacks. Or the model
            is none of timm, cannot be loaded, or its weights are quantized or not there.
        MissingPackageError: timm is missing.
    """
    done = conversion_from_timm(model)
    for remark in done.remarks:
        logger.warning(remark)
    return done.model


def conversion_from_timm(model: Any) -> Conversion:
    """As `convert_from_timm`, with the difference, and the remarks in place of warnings."""
    source = open_timm(model)
    kind = timm_class(source.module)
    if kind not in RULES:
        what = kind or type(source.module).__name__
        raise not_expressible(f"no class of transformers computes what {source.name} does, a {what}")
    read, rules = RULES[kind]
    traits: Traits = read(source.module)
    rule: Rule[Any] = matching_rule(rules, traits, source.name)
    dtype = next(source.module.parameters()).dtype
    module = source.module if dtype == torch.float32 else copy.deepcopy(source.module).float()
    labels = source.labels if traits.classes else {}
    converted: Any = _built(rule, traits, labels, module.state_dict())
    difference = _checked_difference(module, converted, rule, traits, source.name)
    processing = processing_of(source.data_config(), traits.channels, traits.image)
    if processing.processor is not None:
        give_companions(converted, [processing.processor])
    converted.to(dtype).config.dtype = dtype
    return Conversion(converted, source.name, difference, (*rule.remarks(traits), *processing.remarks))


def _built(rule: Rule[Any], traits: Traits, labels: dict[str, Any], state: State) -> Any:
    state = {name: tensor.detach().to("cpu") for name, tensor in state.items()}
    rule.prepare(state, traits)
    with MAKING, unchanged_random_state():
        model: Any = rule.model(traits)(rule.config(traits, labels))
    model.to(torch.float32)
    body = f"{model.base_model_prefix}." if traits.classes else ""
    model.load_state_dict(to_transformers(state, rule.names, body))
    return model.eval()


def _checked_difference(module: nn.Module, model: Any, rule: Rule[Any], traits: Traits, name: str) -> float:
    device = next(module.parameters()).device
    images = random_images((traits.channels, *traits.image), device)
    pooled = traits.classes > 0 or rule.same_pooled
    ours = transformers_outputs(model.to(device), images, traits.classes > 0, rule.same_tokens, pooled)
    absolute, relative = largest_difference(ours, timm_outputs(module, images, rule.same_tokens, pooled))
    if not relative <= TOLERANCE:
        raise not_expressible(
            f"{rule.title} of transformers was tried for {name}, and its output differs by {absolute:.1e}, which is "
            "more than rounding"
        )
    return absolute
