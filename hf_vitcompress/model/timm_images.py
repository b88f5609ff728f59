"""Image processors of timm models: transformers makes them of what stands in `config.json`; no file is theirs alone.

timm calls it `pretrained_cfg`: mean, standard deviation, interpolation, share and way of the crop, and size.
"""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..architectures.inputs import height_and_width
from ..architectures.timm_inputs import TimmImages

TIMM_PROCESSOR = "TimmWrapperImageProcessor"

SETTINGS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
"""Those of `pretrained_cfg` that say what becomes of a picture."""


def is_of_timm(processor: Any) -> bool:
    """Whether it is the image processor that transformers makes of timm's settings."""
    return type(processor).__name__ == TIMM_PROCESSOR


def timm_processor(config: Mapping[str, Any]) -> Any:
    """The image processor that the content of a config describes; `None` where it has no settings of timm."""
    settings = config.get("pretrained_cfg")
    if not settings:
        return None
    from transformers import TimmWrapperImageProcessor

    arguments = config.get("model_args") or {}
    channels, *size = settings.get("input_size") or (3, 224, 224)
    if not arguments.get("dynamic_img_size"):  # of a fixed size, whatever the settings of the published weights say
        size = arguments.get("img_size") or size
    about = TimmImages(size, 16, arguments.get("in_chans") or channels)
    return TimmWrapperImageProcessor(preprocessing_of(copy.deepcopy(settings), about), config.get("architecture"))


def preprocessing_of(settings: dict[str, Any], about: TimmImages) -> dict[str, Any]:
    """`pretrained_cfg` for images of the size and the channels that a model was built for.

    It tells of the weights that timm publishes, and a module of another `img_size` or `in_chans` has the same one. For
    other channels timm itself takes the average of the numbers.
    """
    channels = about.num_channels
    known = {name: _numbers(settings[name]) for name in ("mean", "std") if settings.get(name)}
    fitted = {name: [sum(values) / len(values)] * channels for name, values in known.items() if len(values) != channels}
    return {**settings, **fitted, "input_size": [channels, *height_and_width(about.image_size)]}


def _numbers(value: Any) -> list[float]:
    return [value] if isinstance(value, int | float) else list(value)


def name_processor(config: PreTrainedConfig, processor: Any) -> None:
    """Let `AutoImageProcessor` find this one, where `config.json` is what it reads.

    It reads that file first where there is a `pretrained_cfg` in it. The settings of a processor of timm lie there; of
    any other it takes the class from there, and the rest from the file that the processor has saved beside it.
    """
    stated: Any = config
    if processor is None:
        return
    if is_of_timm(processor):
        own = {name: processor.data_config[name] for name in SETTINGS if name in processor.data_config}
        stated.pretrained_cfg = {**(getattr(config, "pretrained_cfg", None) or {}), **own}
        stated.image_processor_type = TIMM_PROCESSOR
    elif getattr(config, "pretrained_cfg", None):
        known = getattr(processor, "settings", None)  # of one that cannot be loaded here
        kind = known.get("image_processor_type") if isinstance(known, dict) else type(processor).__name__
        stated.image_processor_type = kind or TIMM_PROCESSOR


def as_companions(processor: Any) -> list[Any]:
    """What of an image processor is saved beside a model: nothing of one whose settings lie in `config.json`."""
    return [] if processor is None or is_of_timm(processor) else [processor]
