"""What the benchmarks share: the model and images they run on, and how results are written."""

import argparse
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers

from hf_vitcompress.images.images import Batch
from hf_vitcompress.report.tables import markdown_table as markdown_table

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).parents[2] / "shared" / "assets"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options every benchmark has; the defaults are a ViT-S/14 and CIFAR-10 images beside the repository."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default=str(SHARED / "vit-s14-cifar10"))
    options.add_argument("--calibration", default=str(SHARED / "cifar10" / "calibration.parquet"))
    options.add_argument("--test", default=str(SHARED / "cifar10" / "test.parquet"))
    options.add_argument("--seed", type=int, default=0)
    return options


def measured_on(arguments: argparse.Namespace, batches: Iterable[Batch]) -> dict[str, Any]:
    """On what figures were measured, `batches` of test images among it."""
    return {
        "model": Path(arguments.model).name,
        "calibration": Path(arguments.calibration).name,
        "test": Path(arguments.test).name,
        "test_images": sum(len(batch.pixel_values) for batch in batches),
        "seed": arguments.seed,
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def write_json(name: str, content: Any) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
