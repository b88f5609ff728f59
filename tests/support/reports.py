"""Reports of compressions that never were, and a figure that is not drawn."""

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hf_vitcompress import Evaluation
from hf_vitcompress.evaluation.intervals import Interval, wilson_interval
from hf_vitcompress.evaluation.latency import Latency

EVALUATION = Evaluation(
    images=200,
    top1=wilson_interval(180, 200),
    agreement=wilson_interval(190, 200),
    kl=Interval(0.05, 0.04, 0.06),
    top1_drop=Interval(0.02, 0.01, 0.03),
    reference_top1=wilson_interval(184, 200),
)


LATENCY = Latency(0.020, 0.015, 0.75, 0.7, 0.8, 32, 15, 2, "a processor")


class Blank:
    """In place of a figure, which takes longer to draw than a tiny model to compress."""

    def savefig(self, path: Path, metadata: dict[str, str], **_: Any) -> None:
        info = PngInfo()
        for key, text in metadata.items():
            info.add_text(key, text)
        Image.new("L", (1, 1)).save(path, format="png", pnginfo=info)
