"""Which of the images a stage sees, so that none judges what it has made itself."""

from ..config import CompressionConfig
from .images import ImageSource

LARGEST_MEASURING_SHARE = 1 / 4
"""Of the calibration images: where they are few, the statistics need them more than the measured losses do."""
LARGEST_VALIDATION_SHARE = 1 / 2


def calibration_shares(images: ImageSource, config: CompressionConfig) -> tuple[ImageSource, ImageSource]:
    """The images that make the statistics, and those that are kept out of them, to measure losses on."""
    chosen = images.sample(config.num_images, config.seed)
    measuring = min(config.measuring_images, int(LARGEST_MEASURING_SHARE * len(chosen)))
    return chosen.select(range(measuring, len(chosen))), chosen.select(range(measuring))


def validation_shares(images: ImageSource, config: CompressionConfig) -> tuple[ImageSource, ImageSource]:
    """The images to search `max_accuracy_drop` on, and those that remain for all else."""
    shuffled = images.sample(None, config.seed)
    validation = min(config.validation_images, int(LARGEST_VALIDATION_SHARE * len(images)))
    return shuffled.select(range(validation)), shuffled.select(range(validation, len(shuffled)))
