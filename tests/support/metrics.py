"""A metric of the `evaluate` library in a folder, which needs no network."""

from pathlib import Path

SCRIPT = """
import datasets
import evaluate


class LocalMetric(evaluate.Metric):
    def _info(self):
        numbers = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="", features=datasets.Features(numbers)
        )

    def _compute(self, predictions, references):
        return {"largest_class": max(predictions)}
"""


def save_metric(place: Path) -> Path:
    """A folder in `place`, with a script of its name: the largest class that was predicted."""
    folder = place / "local_metric"
    folder.mkdir()
    (folder / "local_metric.py").write_text(SCRIPT)
    return folder
