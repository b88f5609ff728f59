"""A model of timm becomes one of transformers that computes the same, or is refused."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..model.companions import give_companions
from ..model.making import MAKING
from ..publish.names import is_used_by_texts
from ..publish.saved import SavedFiles
from ..runtime.random_state import independent_of_caller
from .processing import processing_of
from .proof import Pair, compare
from .reading import timm_class
from .rule import Rule, Traits, matching_rule, not_expressible
from .sources import Source, open_timm
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

    def with_warnings(self) -> Any:
        """The model; the remarks become warnings."""
        for remark in self.remarks:
            logger.warning(remark)
        return self.model


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
    return conversion_from_timm(model).with_warnings()


@independent_of_caller()
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
    labels = _labels(source, traits)
    converted: Any = _built(rule, traits, labels, module.state_dict())
    difference = _checked_difference(module, converted, rule, traits, source.name)
    processing = processing_of(source.data_config(), traits.channels, traits.image)
    processors = [] if processing.processor is None else [processing.processor]
    give_companions(converted, [*processors, *_files_beside(model)])
    converted.to(dtype).config.dtype = dtype
    remarks = (*rule.remarks(traits), *processing.remarks, *_settings_remarks(source))
    return Conversion(converted, source.name, difference, remarks)


def _files_beside(model: Any) -> list[SavedFiles]:
    """Licence and notice of a folder, which hold for the converted weights, too."""
    if not isinstance(model, str | Path) or not Path(model).is_dir():
        return []
    saved = SavedFiles.of(model, is_used_by_texts)
    return [saved] if saved.files else []


def _labels(source: Source, traits: Traits) -> dict[str, Any]:
    """Names of the classes; only their number where the head was replaced."""
    if traits.classes and len(source.labels.get("id2label", ())) != traits.classes:
        return {"num_labels": traits.classes}
    return source.labels if traits.classes else {}


def _settings_remarks(source: Source) -> list[str]:
    found = []
    if not source.settings:
        found.append("The model has no pretrained_cfg; the image processor has timm's defaults, which is a guess.")
    rates = [getattr(part, name, 0.0) for part in source.module.modules() for name in ("p", "drop_prob", "prob")]
    if any(isinstance(rate, float) and rate > 0 for rate in rates):
        found.append("The converted model has no dropout and no stochastic depth while it is trained; timm's has.")
    return found


def _built(rule: Rule[Any], traits: Traits, labels: dict[str, Any], state: State) -> Any:
    state = {name: tensor.detach().to("cpu") for name, tensor in state.items()}
    rule.prepare(state, traits)
    with MAKING:
        model: Any = rule.model(traits)(rule.config(traits, labels))
    model.to(next(iter(state.values())).dtype)
    body = f"{model.base_model_prefix}." if traits.classes else ""
    model.load_state_dict(to_transformers(state, rule.names, body))
    return model.eval()


def _checked_difference(module: nn.Module, model: Any, rule: Rule[Any], traits: Traits, name: str) -> float:
    def pair_of(module: nn.Module, model: Any) -> Pair:
        model.to(next(module.parameters()).device)
        headed, shape = traits.classes > 0, (traits.channels, *traits.image)
        return Pair(model, module, headed, rule.same_tokens, headed or rule.same_pooled, shape)

    def in_double() -> Pair:
        twin = copy.deepcopy(module).double()
        return pair_of(
            twin, _built(rule, traits, {"num_labels": traits.classes} if traits.classes else {}, twin.state_dict())
        )

    difference = compare(pair_of(module, model), name, in_double)
    if not difference.is_rounding:
        raise not_expressible(
            f"{rule.title} of transformers was tried for {name}, and its output differs by {difference.largest:.1e}, "
            "which is more than rounding"
        )
    return difference.largest
