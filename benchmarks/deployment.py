"""A compressed model quantized and exported: bytes, accuracy and latency beside those of the dense model.

In torch: dense and compressed, in float32, with int8 weights, and with int8 weights and activations. In onnxruntime:
dense and compressed. Latency is each time taken alternately with the dense float32 model of the same runtime. Writes
deployment.json and .md to benchmarks/results. Timings want a machine that does nothing else.
"""

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import RESULTS, environment, markdown_table, parser, write_json

from hf_vitcompress import CompressionConfig, ViTCompressor, quantize
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.deploy.export import export_model
from hf_vitcompress.deploy.quantization import SCHEMES
from hf_vitcompress.evaluation.evaluation import Evaluation, judge, model_outputs
from hf_vitcompress.evaluation.latency import LATENCY_BATCHES, Latency, measure_latency
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.model.loading import load_model
from hf_vitcompress.report.tables import format_bytes, format_percent
from hf_vitcompress.runtime.weights import disk_bytes


@dataclass
class Row:
    """One model on one runtime; `latency` against the dense float32 model of that runtime."""

    name: str
    bytes: int
    evaluation: Evaluation | None
    latency: list[Latency]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--compressed", type=Path, help="folder of a compressed model; by default one is made")
    options.add_argument("--keep-ratio", type=float, default=0.4)
    options.add_argument("--minutes", type=float, default=5.0, help="of compensation, where one is made")
    arguments = options.parse_args()

    compressor = ViTCompressor()
    subject = compressor.open(arguments.model)
    test = compressor.open_images(arguments.test, subject)
    with tempfile.TemporaryDirectory() as temporary:
        small = arguments.compressed or compress(arguments, Path(temporary) / "compressed")
        rows = torch_rows(subject, small, test, Path(temporary))
        rows += onnx_rows(arguments.model, small, Path(temporary))
        kept = load_model(small).num_parameters() / subject.model.num_parameters()
    content = {
        "model": Path(arguments.model).name,
        "keep_ratio": kept,
        "test": Path(arguments.test).name,
        "environment": environment(),
        "rows": [asdict(row) for row in rows],
    }
    write_json("deployment.json", content)
    text = markdown(content, rows)
    (RESULTS / "deployment.md").write_text(text, encoding="utf-8")
    print(text)


def compress(arguments: Any, folder: Path) -> Path:
    config = CompressionConfig(
        keep_ratio=arguments.keep_ratio,
        compensation="distill",
        compensation_duration=f"{arguments.minutes} minutes",
        seed=arguments.seed,
    )
    ViTCompressor(config).compress(arguments.model, arguments.calibration).save_pretrained(folder)
    return folder


def torch_rows(subject: Subject, small: Path, test: ImageSource, place: Path) -> list[Row]:
    """Saved and loaded again, as a user would, so that bytes are those of the files."""
    rows = []
    batches = list(test.batches(subject.processor, 64))
    reference, labels = model_outputs(subject, batches)
    for name, model in (("dense", subject.model), ("compressed", load_model(small))):
        for scheme in (None, *SCHEMES):
            folder = place / f"{name}-{scheme}"
            (model if scheme is None else quantize(model, scheme)).save_pretrained(folder)
            loaded = load_model(folder)
            evaluation = judge(model_outputs(subject.like(loaded), batches)[0], reference, labels, classes=True)
            latency = [measure_latency(subject.model, loaded, size) for size in LATENCY_BATCHES]
            label = f"torch, {name}, {'float32' if scheme is None else scheme}"
            rows.append(Row(label, disk_bytes(folder), evaluation, latency))
            print(rows[-1], flush=True)
    return rows


def onnx_rows(dense: str, small: Path, place: Path) -> list[Row]:
    done = export_model(small, "onnx", place / "onnx", against=dense)
    assert done.dense is not None
    return [
        Row("onnxruntime, dense, float32", done.dense.bytes, None, [itself(at) for at in done.latency]),
        Row("onnxruntime, compressed, float32", done.report.bytes, None, done.latency),
    ]


def itself(measured: Latency) -> Latency:
    """The dense model's own time."""
    return replace(measured, compressed=measured.dense, ratio=1.0, ratio_low=1.0, ratio_high=1.0)


def markdown(content: dict[str, Any], rows: list[Row]) -> str:
    header = ("runtime, model, weights", "on disk", "top-1", "agreement", *(f"batch {n}" for n in LATENCY_BATCHES))
    table = markdown_table(header, [(row.name, format_bytes(row.bytes), *_accuracy(row), *_speed(row)) for row in rows])
    place, judged = content["environment"], rows[0].evaluation
    assert judged is not None
    return (
        f"# After compression\n\n{content['model']} at {content['keep_ratio']:.1%} of its parameters, "
        f"{judged.images:,} images of {content['test']}, {place['threads']} threads of {place['cpu']}, "
        f"torch {place['torch']}. Latency: milliseconds, and × those of the dense float32 model on the same runtime, "
        f"in turn (quartiles). Made by `python benchmarks/deployment.py`.\n\n{table}"
    )


def _accuracy(row: Row) -> tuple[str, str]:
    judged = row.evaluation
    if judged is None or judged.top1 is None or judged.agreement is None:
        return "not measured", "not measured"
    return format_percent(judged.top1), format_percent(judged.agreement)


def _speed(row: Row) -> list[str]:
    return [
        f"{at.compressed * 1000:.1f} ms, {at.ratio:.2f} × ({at.ratio_low:.2f} to {at.ratio_high:.2f})"
        for at in row.latency
    ]


if __name__ == "__main__":
    main()
