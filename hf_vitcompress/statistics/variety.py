"""How different the calibration images are: from many images that are alike, statistics learn as little as from one."""

import hashlib
import statistics as averages
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from ..architectures.layers import LayerInfo
from ..errors import CalibrationError, CalibrationWarning
from ..images.images import Batch, ImageSource
from ..runtime.distributed import gather_objects
from .statistics import Statistics

FLAT = 1e-3
"""An image whose `pixel_values` differ by no more than this in each channel is of one colour."""

FEW_USELESS = 0.1
"""Share of images of one colour and of repeated ones that is not worth a word: real data sets have some."""

LAYERS = 8
"""So many layers' inputs, evenly over the depth, are enough to see how much the images vary."""

SMALL_VARIANCE = 1e-4
"""Variance of a direction, as a share of the largest one, below which it does not count."""

FEW_DIRECTIONS = 1 / 3
"""Share of the directions of a layer's input in which real images vary at the very least, in the median layer.

Measured with `SMALL_VARIANCE`, on the model of digits and on a ViT-S: 8 images vary in 56 and 63 %, 16 in 64 and 82 %,
256 in 83 and 99.7 %; one image 20 times in 25 and 16 %, 64 black images in 25 and 4 %.
"""


@dataclass
class Counts:
    """Images that add nothing to the statistics.

    Attributes:
        images: that were looked at.
        one_colour: how many are of one colour.
        repeated: how many of the others repeat an earlier one.
        first_of_one_colour: the first of the former; empty without.
        first_repeated: the first of the latter; empty without.
    """

    images: int = 0
    one_colour: int = 0
    repeated: int = 0
    first_of_one_colour: str = ""
    first_repeated: str = ""


@dataclass
class Variety:
    """Looks at every image as the model sees it, and counts those that add nothing.

    Attributes:
        source: of the images.
        counts: of all processes and of the runs before an interruption, once `gather` has been called.
    """

    source: ImageSource
    counts: Counts
    _seen: set[bytes] = field(default_factory=set)
    _new: list[tuple[int, bytes, bool]] = field(default_factory=list)

    def look(self, batch: Batch, batch_size: int) -> None:
        """Note the images of a batch."""
        flat = _of_one_colour(batch.pixel_values).tolist()
        for position, pixels, is_flat in zip(batch.positions, batch.pixel_values, flat, strict=True):
            digest = hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=16).digest()
            self._new.append((batch.index * batch_size + position, digest, is_flat))

    def gather(self, accelerator: Accelerator, into: Statistics) -> None:
        """Count what all processes have noted since the last time, and write the counts into the settings."""
        for position, digest, is_flat in sorted(item for own in gather_objects(accelerator, self._new) for item in own):
            self.counts.images += 1
            if is_flat:
                self.counts.one_colour += 1
                self.counts.first_of_one_colour = self.counts.first_of_one_colour or self.source.describe(position)
            elif digest in self._seen:
                self.counts.repeated += 1
                self.counts.first_repeated = self.counts.first_repeated or self.source.describe(position)
            self._seen.add(digest)
        self._new.clear()
        into.settings["variety"] = asdict(self.counts)


def check_variety(statistics: Statistics, layers: Sequence[LayerInfo], counts: Counts, name: str) -> None:
    """Refuse images that are all alike, and warn of those that mostly are.

    Args:
        name: of the images.

    Raises:
        CalibrationError: not two of the images differ from each other and show more than one colour.
    """
    useless = counts.one_colour + counts.repeated
    if useless and counts.images - useless <= 1:
        raise CalibrationError(
            f"The images of {name} are all alike: {_named(counts)}. Statistics of them say nothing about other images. "
            "Calibrate on different ones, of the kind that the model will see."
        )
    if useless > FEW_USELESS * counts.images:
        _warn(f"Many images of {name} add nothing to the statistics: {_named(counts)}.")
        return
    varying, size = directions(statistics, layers)
    if varying < FEW_DIRECTIONS * size:
        _warn(
            f"The images of {name} are much alike: what they give to the layers varies in {varying:.0f} of {size:.0f} "
            "directions (the median of the layers that were looked at)."
        )


def directions(statistics: Statistics, layers: Sequence[LayerInfo]) -> tuple[float, float]:
    """In how many directions the inputs of layers vary, and how many there are: medians over some of the layers.

    Only layers that have seen more tokens than they have features are looked at; (0, 0) without any.
    """
    moments = {
        layer.input_name: moment.covariance
        for layer in layers
        if (moment := statistics.inputs[layer.input_name]).second is not None
        and layer.in_features <= min(layer.out_features, statistics.tokens.get(layer.input_name, 0))
    }
    if not moments:
        return 0.0, 0.0
    found = list(moments.values())
    chosen = [found[round(i * (len(found) - 1) / (LAYERS - 1))] for i in range(LAYERS)]
    varying = [_varying(covariance) for covariance in chosen]
    share = averages.median(count / len(covariance) for count, covariance in zip(varying, chosen, strict=True))
    size = averages.median(len(covariance) for covariance in chosen)
    return share * size, size


def _varying(covariance: Tensor) -> int:
    variances = torch.linalg.eigvalsh(covariance)
    return int((variances > SMALL_VARIANCE * variances[-1]).sum())


def _of_one_colour(pixel_values: Tensor) -> Tensor:
    """(n,), of (n, channels, height, width) or (n, patches, features)."""
    over = 1 if pixel_values.dim() == 3 else (-2, -1)
    spread = pixel_values.amax(over) - pixel_values.amin(over)
    return spread.flatten(1).amax(1) <= FLAT


def _named(counts: Counts) -> str:
    parts = []
    if counts.one_colour:
        parts.append(f"{counts.one_colour} of {counts.images} are of one colour ({counts.first_of_one_colour})")
    if counts.repeated:
        parts.append(f"{counts.repeated} of {counts.images} repeat another one ({counts.first_repeated})")
    return " and ".join(parts)


def _warn(what: str) -> None:
    warnings.warn(
        f"{what} The plan fits images like these, and on others the model may lose more than predicted. Use more "
        "different images.",
        CalibrationWarning,
        stacklevel=4,
    )
