"""Judging what compress has made: it fails for reasons of its own, and the model is saved all the same."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EvaluationError, VitCompressError
from .ending import explained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..architectures.subject import Subject
    from ..compressor import ViTCompressor
    from ..images.images import ImageSource


def judging_images(images: "ImageSource | None", subject: "Subject") -> "ImageSource | None":
    """The images to judge on, refused before the work where their labels are not the model's."""
    from ..evaluation.labels import checked_labels

    return None if images is None else checked_labels(images, subject.model)


def judge(
    compressor: "ViTCompressor",
    small: "PreTrainedModel",
    subject: "Subject",
    images: "ImageSource | None",
    latency_shape: tuple[int, ...] | None,
    latency: bool,
) -> Exception | None:
    """Fill in what the report of `compressor` says about answers and times.

    Args:
        images: to judge on; `None` leaves the answers out.
        latency_shape: of one image.
        latency: whether to time both models.

    Returns:
        what went wrong, if anything did.
    """
    from ..evaluation.evaluation import evaluate_model
    from ..evaluation.latency import LATENCY_BATCHES, measure_latency

    report, run = compressor.report, compressor.run
    assert report is not None
    try:
        if images is not None:
            report.evaluation = evaluate_model(
                small,
                images,
                subject.processor,
                subject.whole,
                progress=run.progress,
                accelerator=run.accelerator,
            )
        if latency and run.is_main:
            report.latency = [
                measure_latency(subject.whole, small, size, shape=latency_shape) for size in LATENCY_BATCHES
            ]
    except Exception as error:  # whatever it is, the model is there and is to be saved
        return error
    return None


def saved_unjudged(output: Path, failure: Exception) -> EvaluationError:
    """The error that says so."""
    reason = str(failure) if isinstance(failure, VitCompressError) else explained(failure)
    return EvaluationError(
        f"The model is saved to {output}, but judging it failed: {reason} `vitcompress evaluate` judges it again."
    )
