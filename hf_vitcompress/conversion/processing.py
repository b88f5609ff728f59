"""timm's preprocessing as an image processor of transformers, and back."""

import math
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""timm's names of interpolations, and Pillow's numbers."""


@dataclass(frozen=True)
class Processing:
    """An image processor, `None` where there is none for such images, and what it does in another way than timm."""

    processor: Any
    remarks: tuple[str, ...] = ()


def processing_of(data: dict[str, Any], channels: int, image: tuple[int, int]) -> Processing:
    """What timm does to an image before the model, with an image processor of transformers.

    Args:
        data: timm's data config: interpolation, mean, std, crop_pct and crop_mode.
        channels: of the model's images.
        image: height and width of the model's images.
    """
    if channels != 3:
        said = f"The model takes images of {channels} channels, for which there is no image processor: bring your own."
        return Processing(None, (said,))
    # Where torchvision is missing, importing them says so at once; a model of timm, which needs it, is not read there.
    from transformers import CLIPImageProcessor, ViTImageProcessor

    common: dict[str, Any] = {
        "resample": RESAMPLING.get(data["interpolation"], RESAMPLING["bicubic"]),
        "image_mean": [float(value) for value in data["mean"]],
        "image_std": [float(value) for value in data["std"]],
        "do_convert_rgb": True,
    }
    remarks = []
    if data["interpolation"] not in RESAMPLING:
        remarks.append(f"The image processor resizes by bicubic interpolation, and timm by {data['interpolation']}.")
    height, width = image
    enlarged = [math.floor(side / data["crop_pct"]) for side in image]
    squashes = data["crop_mode"] == "squash"
    if squashes and enlarged == [height, width]:
        return Processing(ViTImageProcessor(size={"height": height, "width": width}, **common), tuple(remarks))
    size = {"height": enlarged[0], "width": enlarged[1]} if squashes else {"shortest_edge": max(enlarged)}
    cropped: dict[str, Any] = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    remarks += _crop_remarks(data, image, enlarged)
    return Processing(CLIPImageProcessor(size=size, **cropped, **common), tuple(remarks))


def _crop_remarks(data: dict[str, Any], image: tuple[int, int], enlarged: list[int]) -> list[str]:
    """What timm's crop does that no image processor does; `crop_pct` is expressed by the size before the crop."""
    if data["crop_mode"] == "border":
        return [
            "timm pads images to a square (crop_mode='border'), which no image processor does: this one resizes the "
            "shorter side and crops."
        ]
    if data["crop_mode"] != "squash" and image[0] != image[1]:
        return [
            "timm resizes until an image covers the model's size, which is not square. No image processor does that: "
            "this one resizes the shorter side and crops."
        ]
    # torchvision rounds half the margin, and .5 to the even number; transformers rounds it down.
    off = [(side - wanted) % 4 == 3 for side, wanted in zip(enlarged, image, strict=True)]
    if any(off):
        return [f"With crop_pct={data['crop_pct']:g} the crop lies one pixel further up and left than timm's."]
    if data["crop_mode"] != "squash":
        return ["The crop of images that are not square may lie one pixel further up or left than timm's."]
    return []


def data_config_of(processor: Any, config: PreTrainedConfig, image: tuple[int, int]) -> dict[str, Any]:
    """The data config, in timm's form, of an image processor; of a model without one, timm's defaults.

    Args:
        config: of the model.
        image: height and width of the model's images.
    """
    data: dict[str, Any] = {"input_size": (config.num_channels, *image)}
    if processor is None:
        return data
    known = processor.to_dict()
    names = {number: name for name, number in RESAMPLING.items()}
    size = known.get("size") or {}
    edge = size.get("shortest_edge") or size.get("height") or image[0]
    return {
        **data,
        "mean": tuple(known["image_mean"]),
        "std": tuple(known["image_std"]),
        "interpolation": names.get(known.get("resample"), "bicubic"),
        "crop_pct": image[0] / edge if known.get("do_center_crop") else 1.0,
        "crop_mode": "center" if "shortest_edge" in size else "squash",
    }
