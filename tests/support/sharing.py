"""What processes do that share work."""

import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor, cli, evaluate_model
from hf_vitcompress.architectures.layers import find_layers
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.images.digest import images_facts
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.planning.groups.base import LayerGroup
from hf_vitcompress.planning.groups.heads import HeadsGroup
from hf_vitcompress.planning.groups.layer import SingleLayerGroup
from hf_vitcompress.planning.groups.pair import PairGroup
from hf_vitcompress.planning.groups.query_key import QueryKeyGroup
from hf_vitcompress.report import figures
from hf_vitcompress.runtime.distributed import (
    from_main,
    from_owner,
    gather_objects,
    gather_rows,
    local_work,
    mean_over_processes,
    new_accelerator,
    sum_numbers,
)
from hf_vitcompress.statistics import calibration, identity
from hf_vitcompress.statistics.calibration import calibrate
from support.models import DIGITS
from support.reports import Blank
from support.stages import quiet
from support.students import LOW_RANK, METHODS, lively

IMAGES = 90
BAD = {3, 20, 50}
MEASURING = 8
SECOND_BATCH = 20
COMPENSATED = ("residual", "low rank", "heads", "distill")
OF_THE_MAIN_PROCESS = {0, 1, *range(4, 10)}
"""In batches of 2 of 12 images, all that the main one of two or three processes reads."""


class Watched(list[Any]):
    """Images that remember which of them were read; reading the `deadly` one is the last that a process does.

    To look at their content, to tell them from others, is not to read them.
    """

    looked_at = False

    def __init__(self, images: Iterable[Any], deadly: int | None = None) -> None:
        super().__init__(images)
        self.deadly, self.read = deadly, set[int]()

    def __getitem__(self, index: Any) -> Any:
        if not self.looked_at:
            if index == self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            self.read.add(index)
        return super().__getitem__(index)


def looking(images: ImageSource, *arguments: Any) -> dict[str, str]:
    """As `images_facts`."""
    with mock.patch.object(Watched, "looked_at", True):
        return images_facts(images, *arguments)


class Failure(NamedTuple):
    """Of a process; `reported` where it is left to the main one to say it."""

    kind: str
    message: str
    reported: bool


def failure_of(work: Callable[[], object]) -> Failure | None:
    try:
        work()
    except Exception as error:
        return Failure(type(error).__name__, str(error), getattr(error, "reported", False))
    return None


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def outcome_of(*arguments: object) -> Outcome:
    """Of `vitcompress …`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = mock.patch.object(sys, "argv", ["vitcompress", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def solving() -> Iterator[list[str]]:
    """Names of the parts that this process solves."""
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        for kind in (SingleLayerGroup, QueryKeyGroup, PairGroup, HeadsGroup):

            def solve(group: LayerGroup, solve: Callable[[LayerGroup], Any] = kind.solve) -> Any:
                names.append(group.name)
                return solve(group)

            stack.enter_context(mock.patch.object(kind, "solve", solve))
        yield names


def plain(value: Any) -> Any:
    """Dictionaries and tensors instead of data classes and tuples."""
    if is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {i: plain(item) for i, item in enumerate(value)}
    return value


class Process:
    """One of several, with the dense model and the images that all of them have."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.accelerator = folder, new_accelerator()
        self.index, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.pixels = torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        self.dense = lively()
        with torch.no_grad():
            self.dense.classifier.bias -= self.outputs(self.dense).mean(0)
        labels = self.outputs(self.dense).argmax(-1)
        labels[::7] = 0
        self.labels = labels.tolist()

    def outputs(self, model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return model(pixel_values=self.pixels).logits

    def images(self, bad: Iterable[int] = (), count: int = IMAGES) -> ImageSource:
        raw = Watched(b"" if i in bad else self.pixels[i].clone() for i in range(count))
        return ImageSource(raw, self.labels[:count], "the images")

    def calibrated(self, images: ImageSource, checkpoint: Path | None = None, **changes: Any) -> dict[str, Any]:
        config = CompressionConfig(precision="float32", **changes)
        layers = find_layers(self.dense)
        run = quiet(config, self.accelerator)
        statistics = calibrate(Subject.alone(self.dense), layers, images, run, checkpoint)
        return {"statistics": statistics, "read": images.images.read}

    def compressed(self, name: str, images: ImageSource, **changes: Any) -> dict[str, Any]:
        """Every process keeps its checkpoints under another name, so that it shows who writes them."""
        settings = {"keep_ratio": 0.4, "rank_multiple": 1, "precision": "float32", "measuring_images": MEASURING}
        config = CompressionConfig(**{**settings, **changes})
        compressor = ViTCompressor(config, progress=False, accelerator=self.accelerator)
        checkpoint = self.folder / f"{name}-{self.index}"
        with solving() as solved:
            small = compressor.compress(self.dense, images, checkpoint=checkpoint)
        assert compressor.statistics is not None
        assert compressor.report is not None
        planner = compressor.planner(self.dense, compressor.statistics)
        return {
            "statistics": compressor.statistics,
            "solved": solved,
            "solutions": {group.name: plain(group.solution) for group in planner.groups},
            "layers": small.config.compression["layers"],
            "predicted": {group.name: group.predicted_loss for group in compressor.report.parts},
            "compensation": compressor.report.compensation,
            "weights": small.state_dict(),
            "outputs": self.outputs(small),
            "evaluation": self.evaluated(small),
        }

    def evaluated(self, model: PreTrainedModel) -> dict[str, Any]:
        images = self.images(bad=BAD)
        return asdict(
            evaluate_model(model, images, None, self.dense, batch_size=16, progress=False, accelerator=self.accelerator)
        )

    def resumed(self) -> dict[str, Any]:
        """What `killed` has left, gone on with."""
        checkpoint = self.folder / f"killed-{self.index}"
        shutil.copy(self.folder.parent / "killed", checkpoint)
        return self.calibrated(self.images(), checkpoint, batch_size=4)

    def searched(self) -> dict[str, Any]:
        return self.compressed("searched", self.images(), keep_ratio=None, max_accuracy_drop=0.15, validation_images=40)

    def divided(self) -> None:
        with local_work(self.accelerator, "Division"):
            1 // (self.count - 1 - self.index)

    def exchanged(self) -> dict[str, Any]:
        rows = torch.arange(self.index, dtype=torch.float32)[:, None].expand(self.index, 2) + 10 * self.index
        return {
            "sums": sum_numbers(self.accelerator, [1.0, self.index]),
            "rows": gather_rows(self.accelerator, rows),
            "mean": mean_over_processes(self.accelerator, torch.ones(3 + self.index) * self.index),
            "objects": gather_objects(self.accelerator, {"process": self.index}),
            "main": from_main(self.accelerator, f"from {self.index}"),
            "last": from_owner(self.accelerator, torch.full((2, 3), float(self.index)), self.count - 1),
        }

    def commands(self) -> dict[str, Outcome]:
        model, data, small = DIGITS / "model", DIGITS / "calibration.parquet", self.folder / "small"
        statistics = ["--statistics", self.folder / "small.safetensors"]
        recipe = ["--num-images", 160, "--rank-multiple", 2, "-q"]
        learn = ["--data", data, "--compensation", "distill", "--compensation-duration", "1 epoch"]
        compress = ["compress", model, *recipe, *learn, *statistics, "--output", small, "--keep-ratio"]
        return {
            "compress": outcome_of(*compress, 0.4),
            "existing output": outcome_of(*compress, 0.4),
            "wrong setting": outcome_of(*compress, 4),
            "small budget": outcome_of("plan", model, *recipe, *statistics, "--keep-ratio", 0.001),
            "evaluate": outcome_of("evaluate", small, "--data", DIGITS / "test.parquet", "--against", model, "-q"),
            "nothing to evaluate": outcome_of("evaluate", self.folder / "no", "--data", data),
            "nothing to inspect": outcome_of("inspect", model, "--data", self.folder / "no.parquet"),
            "nothing to plan": outcome_of("plan", model, "--statistics", self.folder / "no"),
        }


def everything(folder: Path) -> None:
    process = Process(folder)
    nan = process.images()
    nan.images[SECOND_BATCH][0, 0, 0] = torch.nan
    distill = {"compensation_duration": "3 epochs", "distill_batch_size": 16, "learning_rate": 1e-4}
    few = {"batch_size": 8, "compensation": "both", "optimizer": "adamw", **distill}
    residual = {"compensation": "residual", "residual_share": 0.5, "metric": "activation"}
    low_rank, heads = ({**method, **residual} for method in (LOW_RANK, METHODS["pruned"]))
    results: dict[str, Any] = {
        "plain": process.compressed("plain", process.images(bad=BAD), batch_size=4),
        "few": process.compressed("few", process.images(count=10), **few),
        "residual": process.compressed("residual", process.images(bad=BAD), **residual),
        "low rank": process.compressed("low rank", process.images(bad=BAD), **low_rank),
        "heads": process.compressed("heads", process.images(bad=BAD), **heads),
        "distill": process.compressed("distill", process.images(bad=BAD), compensation="distill", **distill),
        "searched": process.searched(),
        "one pass": process.calibrated(process.images(), batch_size=4),
        "resumed": process.resumed(),
        "main unreadable": process.calibrated(process.images(bad=OF_THE_MAIN_PROCESS, count=12), batch_size=2),
        "nan": failure_of(lambda: process.calibrated(nan)),
        "unreadable": failure_of(lambda: process.calibrated(process.images(bad=range(IMAGES)))),
        "nothing to evaluate": failure_of(
            lambda: evaluate_model(
                process.dense, process.images(range(IMAGES)), progress=False, accelerator=process.accelerator
            )
        ),
        "divided": failure_of(process.divided),
        "exchanged": process.exchanged(),
    }
    if process.count == 2:
        results["commands"] = process.commands()
    torch.save(results, folder / f"result-{process.index}.pt")


def killed(folder: Path) -> None:
    """Two processes of which the second dies after the first checkpoint, of 2 × 4 batches of 4 images."""
    process = Process(folder)
    images = process.images()
    images.images.deadly = 37
    process.calibrated(images, folder / "killed", batch_size=4)


def work(job: str, folder: Path) -> None:
    torch.set_num_threads(1)
    often = mock.patch.object(calibration, "CHECKPOINT_SECONDS", -1.0)
    undrawn = mock.patch.object(figures, "compression_figure", return_value=Blank())
    with often, undrawn, mock.patch.object(identity, "images_facts", looking):
        {"everything": everything, "killed": killed}[job](folder)


Results = dict[int, list[dict[str, Any]]]
"""By number of processes, of each."""
