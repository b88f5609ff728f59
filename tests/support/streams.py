"""Models and images whose blocks are read one by one."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_vitcompress import CompressionConfig
from hf_vitcompress.architectures.layers import block_names
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.compensation.block_inputs import PairedBlockInputs
from hf_vitcompress.images.images import ImageSource
from support.stages import quiet
from support.zoo import HEADS, Head

BATCH = 8


VIT, SWIN, YOLOS, NAFLEX = (
    next(head for head in HEADS if head.family == family) for family in ("vit", "swin", "yolos", "siglip2")
)


def streams_of(models: Any, images: ImageSource, **settings: Any) -> PairedBlockInputs:
    config = CompressionConfig(**{"batch_size": BATCH, "precision": "float32", **settings})
    return PairedBlockInputs(
        (Subject.alone(models[0]), Subject.alone(models[1])),
        block_names(models[0]),
        images,
        quiet(config, accelerator=Accelerator(cpu=True)),
    )


def padded_images(head: Head, count: int = 4, real: int = 12) -> tuple[ImageSource, Tensor]:
    """Images of which the last patches are padding, and their mask."""
    mask = torch.ones(count, head.images[0], dtype=torch.int32)
    mask[:, real:] = 0
    about = [{"pixel_attention_mask": own} for own in mask]
    return ImageSource(list(head.pixels(count)), None, "the images", inputs=about), mask
