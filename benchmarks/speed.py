"""Time, memory and latency, each as a ratio taken in one run. Writes speed.json and speed.md to benchmarks/results.

* calibrate + plan + build against a plain forward + backward over the same images in the same process;
* another budget from saved statistics;
* peak resident memory over that of loading the model and running one batch;
* latency dense and compressed, alternately;
* what importing the package costs on top of transformers;
* with --deit: a model of the size of DeiT-B with random weights, through the command line.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, markdown_table, parser, write_json
from transformers import DeiTConfig, DeiTForImageClassification, PreTrainedModel, ViTImageProcessorPil

from hf_vitcompress import CompressionConfig, Statistics, ViTCompressor
from hf_vitcompress.evaluation.latency import measure_latency
from hf_vitcompress.images.images import Batch

IMPORTS = (
    "import transformers, transformers.models.vit.modeling_vit",
    "import transformers, transformers.models.vit.modeling_vit, hf_vitcompress",
)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=1024)
    options.add_argument("--keep-ratio", type=float, default=0.4)
    options.add_argument("--deit", action="store_true", help="also the DeiT-B-sized model (several minutes)")
    arguments = options.parse_args()

    result: dict[str, Any] = {"environment": environment(), "images": arguments.images}
    config = CompressionConfig(keep_ratio=arguments.keep_ratio, num_images=arguments.images, seed=arguments.seed)
    compressor = ViTCompressor(config, progress=False)
    subject = compressor.open(arguments.model)
    dense = subject.model
    images = compressor.open_images(arguments.calibration, subject).sample(arguments.images, arguments.seed)
    batches = list(images.batches(subject.processor, config.batch_size))
    forward_backward(dense, batches[:1], torch.bfloat16)
    after_one_batch = resident_peak()

    start = time.perf_counter()
    small = compressor.compress(subject, images)
    result["compress_seconds"] = time.perf_counter() - start
    result["stage_seconds"] = compressor.report.seconds
    result["peak_bytes_over_one_batch"] = resident_peak() - after_one_batch
    result["statistics_bytes"], result["dense_bytes"] = (
        statistics_bytes(compressor.statistics),
        compressor.report.dense.bytes,
    )
    for dtype in (torch.bfloat16, torch.float32):
        result[f"plain_seconds_{dtype}".replace("torch.", "")] = forward_backward(dense, batches, dtype)
    result["replan_seconds"] = replan(compressor.statistics, arguments.model)
    result["latency"] = [asdict(measure_latency(dense, small, batch_size)) for batch_size in (32, 1)]
    result["points"] = compressor.statistics.corrections[compressor.config.method].points
    result["mac_ratio"] = compressor.report.compressed.macs / compressor.report.dense.macs
    result["import_seconds"] = [import_seconds(code) for code in IMPORTS]
    if arguments.deit:
        result["deit_base"] = deit_base()
    write_json("speed.json", result)
    (RESULTS / "speed.md").write_text(markdown(result, Path(arguments.model).name), encoding="utf-8")
    print(markdown(result, Path(arguments.model).name))


def forward_backward(model: PreTrainedModel, batches: list[Batch], dtype: torch.dtype) -> float:
    """Seconds of a plain forward and backward pass (weights included) over all batches."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the faster backward pass on a CPU
    start = time.perf_counter()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(pixel_values=batch.pixel_values).logits
        logits.float().logsumexp(-1).sum().backward()
        model.zero_grad(set_to_none=True)
    model.set_attn_implementation(attention)
    return time.perf_counter() - start


def replan(measured: Statistics, model: str) -> float:
    """Seconds from a statistics file to a built model at another budget, the dense model being loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.safetensors"
        measured.save(path)
        compressor = ViTCompressor(CompressionConfig(keep_ratio=0.3), progress=False)
        subject = compressor.open(model)
        start = time.perf_counter()
        compressor.compress(subject, statistics=Statistics.load(path))
        return time.perf_counter() - start


def statistics_bytes(measured: Statistics) -> int:
    moments = [*measured.inputs.values(), *measured.outputs.values(), *measured.gradients.values()]
    tensors = [value for moment in moments for value in vars(moment).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def import_seconds(code: str) -> float:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return time.perf_counter() - start

    return statistics.median(once() for _ in range(5))


def deit_base(images: int = 128) -> dict[str, Any]:
    """A real architecture with random weights, random images; compressed by the command as a user would."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        DeiTForImageClassification(DeiTConfig(num_labels=1000)).save_pretrained(root / "deit")
        ViTImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(root / "deit")
        (root / "images").mkdir()
        generator = torch.Generator().manual_seed(0)
        for index in range(images):
            pixels = torch.randint(0, 256, (14, 14, 3), generator=generator, dtype=torch.uint8).numpy()
            Image.fromarray(pixels).resize((224, 224)).save(root / "images" / f"{index}.png")
        command = ["compress", str(root / "deit"), "--data", str(root / "images"), "--output", str(root / "out")]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hf_vitcompress", *command, "--keep-ratio", "0.4", "--quiet"], check=True)
        seconds = time.perf_counter() - start
        report = json.loads((root / "out" / "compression_report.json").read_text())
        return {
            "images": images,
            "seconds": seconds,
            "stage_seconds": report["seconds"],
            "keep_ratio": report["keep_ratio"],
            "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        }


def markdown(result: dict[str, Any], model: str) -> str:
    seconds = result["compress_seconds"]
    bound = result["statistics_bytes"] + result["dense_bytes"]
    macs = result["mac_ratio"]
    wide, single = result["latency"]
    base, package = result["import_seconds"]
    rows = [
        ("calibrate + plan + build", f"{seconds:.1f} s", f"{result['images']} images"),
        ("… ÷ plain forward + backward, bfloat16", f"{seconds / result['plain_seconds_bfloat16']:.2f} ×", ""),
        ("… ÷ plain forward + backward, float32", f"{seconds / result['plain_seconds_float32']:.2f} ×", ""),
        ("another budget from saved statistics", f"{result['replan_seconds']:.1f} s", "factorize, plan, build"),
        (
            "peak memory over one batch",
            f"{result['peak_bytes_over_one_batch'] / 1e6:.0f} MB",
            f"statistics + dense model = {bound / 1e6:.0f} MB",
        ),
        *(
            (
                f"latency at batch {latency['batch_size']}, compressed ÷ dense",
                f"{latency['ratio']:.2f} ({latency['ratio_low']:.2f} to {latency['ratio_high']:.2f})",
                f"{latency['dense'] * 1000:.0f} → {latency['compressed'] * 1000:.0f} ms; MACs {macs:.2f}",
            )
            for latency in (wide, single)
        ),
        ("import, on top of transformers and ViT", f"{package - base:.2f} s", f"{base:.2f} → {package:.2f} s"),
    ]
    if "deit_base" in result:
        deit = result["deit_base"]
        rows.append(
            (
                "DeiT-B-sized, random weights, whole command",
                f"{deit['seconds']:.0f} s, peak {deit['peak_bytes'] / 1e9:.2f} GB",
                f"{deit['images']} images, keep ratio {deit['keep_ratio']:.3f}",
            )
        )
    environment_line = ", ".join(f"{name} {value}" for name, value in result["environment"].items())
    return f"# Speed and memory\n\n{model}; {environment_line}.\n\n" + markdown_table(
        ("what", "measured", "note"), rows
    )


if __name__ == "__main__":
    main()
