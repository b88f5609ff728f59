"""Image processors of timm models: transformers makes them of what stands in `config.json`; no file is theirs alone.

timm calls it `pretrained_cfg`: mean, standard deviation, interpolation, share and way of the crop, and size.
"""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

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

    return TimmWrapperImageProcessor(copy.deepcopy(settings), config.get("architecture"))


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
