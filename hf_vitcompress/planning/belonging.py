"""Whether statistics are those that a model and a recipe need."""

from collections.abc import Sequence

from ..architectures.layers import LayerInfo, feature_pairs
from ..architectures.subject import Subject
from ..config import CompressionConfig
from ..errors import CalibrationError
from ..runtime.identity import differences
from ..statistics.identity import subject_identity, weights_in
from ..statistics.statistics import Statistics


def check_statistics(
    statistics: Statistics, subject: Subject, config: CompressionConfig, layers: Sequence[LayerInfo]
) -> None:
    """Refuse statistics that a plan cannot be made from.

    Raises:
        CalibrationError: they belong to another model, are not complete, or lack what the config needs.
    """
    now = subject_identity(subject)
    different = differences(statistics.identity, now)
    if different or statistics.weights != weights_in(now):
        raise CalibrationError(
            f"The statistics were collected from {different or 'another model'}. Calibrate this "
            f"{type(subject.model).__name__}, or give what they were collected from."
        )
    if not statistics.is_complete:
        seen = statistics.images + statistics.bad_images
        raise CalibrationError(
            f"The calibration was interrupted after {seen} of {statistics.settings['images']} images. Finish it first, "
            "by giving its images again (--data) with the same statistics file."
        )
    if statistics.settings.get("metric") != config.metric:
        raise CalibrationError(
            f"The statistics were collected for metric={statistics.settings.get('metric')!r} and the config asks for "
            f"{config.metric!r}. Calibrate again, or use that metric."
        )
    if config.needs_gradients and statistics.settings.get("calibration_loss", "output") != config.calibration_loss:
        raise CalibrationError(
            f"The statistics were collected with another calibration_loss than {config.calibration_loss!r}. Calibrate "
            "again, or use that one."
        )
    known = set(statistics.settings.get("prunable_inputs", []))
    for *_, reader in feature_pairs(layers, config):
        if reader.name not in known:
            raise CalibrationError(
                f"The statistics do not cover the neurons before {reader.name!r}, which mlp={config.mlp!r} may prune. "
                'Calibrate again with that setting, or use mlp="low_rank".'
            )
