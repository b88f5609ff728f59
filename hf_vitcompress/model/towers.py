"""A model inside a larger one, such as the vision tower of CLIP: found, compressed by itself, and put back."""

from typing import Any, cast

from transformers import PreTrainedModel

from ..architectures.families import row_of
from ..architectures.subject import Reading, Subject
from ..errors import ConfigError
from .assembly import assembled, shapes_in, tokens_in
from .loading import load_processor


def part_of(model: PreTrainedModel, target: str, processor: Any = None) -> Subject:
    """The model inside `model` that `target` names, by its module name or a dotted tail of it.

    Raises:
        ConfigError: there is none, or several.
    """
    inside = {name: m for name, m in model.named_modules() if name and isinstance(m, PreTrainedModel)}
    found = [name for name in inside if name == target] or [name for name in inside if name.endswith(f".{target}")]
    if len(found) != 1:
        several = "fits several models" if found else "names no model"
        names = _names(model)
        remedy = (
            f"Those that can be compressed: {names}."
            if names
            else "None in it can be compressed by itself: leave target (--target) out to compress the whole model."
        )
        raise ConfigError(f"target={target!r} {several} inside {type(model).__name__}. {remedy}")
    return Subject(inside[found[0]], model, found[0], processor, reading_of(model))


def reading_of(whole: PreTrainedModel) -> Reading | None:
    """The features that `whole` reads from its vision tower; `None` if it reads the plain output.

    A language model with `vision_feature_layer` in its config, such as LLaVA, reads these hidden states, mostly without
    the class token; a model of images and texts, such as CLIP, the pooled output.
    """
    layers = getattr(whole.config, "vision_feature_layer", None)
    if layers is not None:
        skipped = 1 if getattr(whole.config, "vision_feature_select_strategy", None) == "default" else 0
        return Reading((layers,) if isinstance(layers, int) else tuple(layers), skipped)
    row = row_of(whole)
    return Reading() if row is not None and row.pooled and not takes_only_images(whole) else None


def takes_only_images(model: PreTrainedModel) -> bool:
    """Whether images are all that the model's forward pass needs."""
    return model.main_input_name == "pixel_values" and not model.config.is_encoder_decoder


def check_takes_images(model: PreTrainedModel) -> None:
    """Check that the model takes only images.

    Raises:
        ConfigError: it takes more, such as text, so only a part of it can be compressed.
    """
    if not takes_only_images(model) and (names := _names(model)):
        raise ConfigError(
            f"{type(model).__name__} takes more than images. Name the part of it to compress with target=… (--target): "
            f"{names}."
        )


def _names(model: PreTrainedModel) -> str:
    inside = [(name, m) for name, m in model.named_modules() if name and isinstance(m, PreTrainedModel)]
    return ", ".join(repr(name) for name, m in inside if row_of(m) is not None and m.main_input_name == "pixel_values")


def put_back(subject: Subject, small: PreTrainedModel) -> PreTrainedModel:
    """The `Factored…` counterpart of the subject's whole model in which `small`, a factored one, is its part.

    It shares no memory with the dense model; it takes over the tensors and the companions of `small`, and gets the
    processor beside the dense model, which prepares texts, too.
    """
    layers = {f"{subject.name}.{layer}": shape for layer, shape in shapes_in(small).items()}
    state = {f"{subject.name}.{key}": tensor.detach() for key, tensor in small.state_dict().items()}
    tokens = {f"{subject.name}.{block}": count for block, count in tokens_in(small).items()}
    whole: Any = assembled(subject.whole, layers, state, target=subject.name, tokens=tokens)
    processor = load_processor(subject.whole)
    if subject.processor is not None and hasattr(processor, "image_processor"):
        processor.image_processor = subject.processor  # one that was given goes before the one beside the model
    whole.companions = [*cast(Any, small).companions, *([] if processor is None else [processor])]
    return whole


def compressed_part(model: PreTrainedModel, compressed: PreTrainedModel, processor: Any = None) -> Subject:
    """What of `model` is compressed in `compressed`: the model there that `put_back` put back, else all of it.

    Args:
        model: `compressed` itself, or the dense model it came from, or the part of that already.
        processor: of the images it is to be run on.

    Returns:
        a model by itself, on the memory of `model`.
    """
    target = (getattr(compressed.config, "compression", None) or {}).get("target")
    if target is None:
        return Subject.alone(model, processor)
    if target not in dict(model.named_modules()):  # it is the part
        return Subject(model, model, processor=processor, reading=reading_of(compressed))
    part = part_of(model, target, processor)
    if model is not compressed:
        return part
    layers = {name.removeprefix(f"{target}."): shape for name, shape in shapes_in(compressed).items()}
    tokens = {name.removeprefix(f"{target}."): count for name, count in tokens_in(compressed).items()}
    return part.like(assembled(part.model, layers, dict(part.model.state_dict()), tokens=tokens))
