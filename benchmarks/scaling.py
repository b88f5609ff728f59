"""Images per second of calibration and of distillation on one process and on two, and the bytes that are summed.

Each process gets the same number of threads in both cases. Writes scaling.json and .md to benchmarks/results.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, environment, markdown_table, parser, write_json

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.compensation.compensator import Compensator
from hf_vitcompress.compensation.distillation import trained_parameters


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=160)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.measure:
        measure(arguments.model, arguments.calibration, arguments.images, Path(arguments.measure))
        return
    results = []
    for processes in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "figures.json"
            launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), __file__]
            given = ["--model", arguments.model, "--calibration", arguments.calibration]
            given += ["--images", str(arguments.images), "--measure", str(output)]
            subprocess.run([*launch, *given], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            results.append({"processes": processes, **json.loads(output.read_text())})
    content = {"model": Path(arguments.model).name, "environment": environment(), "results": results}
    write_json("scaling.json", content)
    (RESULTS / "scaling.md").write_text(markdown(content), encoding="utf-8")


def measure(model: str, calibration: str, images: int, output: Path) -> None:
    """In one of the processes; the main one writes the figures."""
    config = CompressionConfig(
        keep_ratio=0.4,
        num_images=images,
        measuring_images=0,
        compensation="distill",
        compensation_duration="0.1 epochs",
        held_out_images=8,  # judging is not what is timed here
    )
    compressor = ViTCompressor(config, progress=False)
    subject = compressor.open(model)
    compressor.calibrate(subject, calibration)  # warms up
    start = time.perf_counter()
    statistics = compressor.calibrate(subject, calibration)
    calibrating = time.perf_counter() - start
    start = time.perf_counter()
    statistics.sum_over_processes(compressor.accelerator)
    summing = time.perf_counter() - start

    statistics = compressor.calibrate(subject, calibration)
    planner = compressor.planner(subject, statistics)
    plan = planner.plan(config)
    small = compressor.build(subject, statistics, plan)
    source = compressor.open_images(calibration, subject)
    report = Compensator(planner, source, compressor.run).run(small, plan)
    first, last = report.points[1], report.points[-1]
    if compressor.accelerator.is_main_process:
        trained = sum(parameter.numel() for parameter in trained_parameters(small).values())
        figures = {
            "calibration_images_per_second": images / calibrating,
            "sum_seconds": summing,
            "distillation_images_per_second": (last.images - first.images) / (last.seconds - first.seconds),
            "gradient_bytes_per_step": 4 * trained,
            "moment_bytes": statistics.bytes_by_layer,
        }
        output.write_text(json.dumps(figures))


def markdown(content: dict[str, Any]) -> str:
    results = content["results"]
    one = results[0]
    rows = [
        [
            str(result["processes"]),
            f"{result['calibration_images_per_second']:.1f}",
            f"{result['calibration_images_per_second'] / one['calibration_images_per_second']:.2f}",
            f"{result['sum_seconds']:.2f}",
            f"{result['distillation_images_per_second']:.1f}",
            f"{result['distillation_images_per_second'] / one['distillation_images_per_second']:.2f}",
        ]
        for result in results
    ]
    header = ("processes", "calibration, images/s", "×", "one sum, s", "distillation, images/s", "×")
    sizes = one["moment_bytes"]
    first_block = {name: size for name, size in sizes.items() if ".layers.0." in name}
    layer_rows = [[name, f"{size / 1e6:.2f}"] for name, size in first_block.items()]
    return (
        f"# Several processes\n\n{content['model']}, one thread a process, gloo, both processes on one machine.\n\n"
        + markdown_table(header, rows)
        + f"\nCalibration sums its moments over the processes once per checkpoint (about every 30 s), "
        f"{sum(sizes.values()) / 1e6:.1f} MB in all, whatever the number of images; a distillation step sums "
        f"{one['gradient_bytes_per_step'] / 1e6:.1f} MB of gradients. The first block's moments:\n\n"
        + markdown_table(("moment", "MB"), layer_rows)
    )


if __name__ == "__main__":
    main()
