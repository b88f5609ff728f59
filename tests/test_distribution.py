"""Several processes as one: the same results on each, said and written once, and an end where one of them ends.

Real processes on CPUs, of which every launch does all its checks: `python test_distribution.py JOB FOLDER`.
"""

import contextlib
import faulthandler
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from conftest import DIGITS, REPOSITORY
from students import LOW_RANK, METHODS, lively
from test_statistics import relative, same, streamed, vectors
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import CompressionConfig, ViTCompressor, calibration, cli, evaluate_model
from hf_vitcompress.calibration import calibrate
from hf_vitcompress.distribution import (
    deal,
    from_main,
    from_owner,
    gather_objects,
    gather_rows,
    local_work,
    mean_over_processes,
    new_accelerator,
    own_share,
    sum_numbers,
)
from hf_vitcompress.heads import HeadsPart
from hf_vitcompress.images import ImageSource
from hf_vitcompress.layers import find_layers
from hf_vitcompress.pairs import PairPart
from hf_vitcompress.parts import LayerPart, Part, QueryKeyPart
from hf_vitcompress.statistics import Statistics

SECONDS = 400
IMAGES = 90
BAD = {3, 20, 50}
SECOND_BATCH = 20
COMPENSATED = ("residual", "low rank", "heads", "distill")
FIRST_OF_THE_MAIN_PROCESS = {*range(16), *range(32, 80)}
"""In batches of 16, all that the main one of two or three processes reads."""


# ---- what the processes do


class Watched(list[Any]):
    """Images that remember which of them were read; reading the `deadly` one is the last that a process does."""

    def __init__(self, images: Iterable[Any], deadly: int | None = None) -> None:
        super().__init__(images)
        self.deadly, self.read = deadly, set[int]()

    def __getitem__(self, index: Any) -> Any:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        self.read.add(index)
        return super().__getitem__(index)


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
        for kind in (LayerPart, QueryKeyPart, PairPart, HeadsPart):

            def solve(part: Part, solve: Callable[[Part], Any] = kind.solve) -> Any:
                names.append(part.name)
                return solve(part)

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
        statistics = calibrate(self.dense, layers, images, config, None, checkpoint, False, self.accelerator)
        return {"statistics": statistics, "read": images.images.read}

    def compressed(self, name: str, images: ImageSource, **changes: Any) -> dict[str, Any]:
        """Every process keeps its checkpoints under another name, so that it shows who writes them."""
        config = CompressionConfig(**{"keep_ratio": 0.4, "rank_multiple": 1, "precision": "float32", **changes})
        compressor = ViTCompressor(config, progress=False, accelerator=self.accelerator)
        checkpoint = self.folder / f"{name}-{self.index}"
        with solving() as solved:
            small = compressor.compress(self.dense, images, checkpoint=checkpoint)
        assert compressor.statistics is not None
        assert compressor.report is not None
        prepared = compressor.prepare(self.dense, compressor.statistics)
        return {
            "statistics": compressor.statistics,
            "solved": solved,
            "solutions": {part.name: plain(part.solution) for part in prepared.parts},
            "layers": small.config.compression["layers"],
            "predicted": {part.name: part.predicted_loss for part in compressor.report.parts},
            "compensation": compressor.report.compensation,
            "weights": small.state_dict(),
            "outputs": self.outputs(small),
            "evaluation": self.evaluated(small),
        }

    def evaluated(self, model: PreTrainedModel) -> dict[str, Any]:
        images = self.images(bad=BAD)
        return asdict(evaluate_model(model, images, None, self.dense, 16, progress=False, accelerator=self.accelerator))

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
        learn = ["--data", data, "--compensation", "distill", "--compensation-epochs", 1]
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
    distill = {"compensation_epochs": 3, "distill_batch_size": 16, "learning_rate": 1e-4}
    few = {"batch_size": 8, "compensation": "both", "optimizer": "adamw", **distill}
    residual = {"compensation": "residual", "residual_share": 0.5, "metric": "activation"}
    low_rank, heads = ({**method, **residual} for method in (LOW_RANK, METHODS["pruned"]))
    results: dict[str, Any] = {
        "plain": process.compressed("plain", process.images(bad=BAD), batch_size=4),
        "few": process.compressed("few", process.images(count=10), **few),
        "residual": process.compressed("residual", process.images(bad=BAD), **residual),
        "low rank": process.compressed("low rank", process.images(bad=BAD), **low_rank),
        "heads": process.compressed("heads", process.images(bad=BAD), **heads),
        "distill": process.compressed("distill", process.images(), compensation="distill", **distill),
        "distill bad": process.compressed("distill bad", process.images(bad=BAD), compensation="distill", **distill),
        "searched": process.searched(),
        "one pass": process.calibrated(process.images(), batch_size=4),
        "resumed": process.resumed(),
        "main unreadable": process.calibrated(process.images(bad=FIRST_OF_THE_MAIN_PROCESS)),
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
    with mock.patch.object(calibration, "CHECKPOINT_SECONDS", -1.0):
        {"everything": everything, "killed": killed}[job](folder)


# ---- how they are started

Results = dict[int, list[dict[str, Any]]]
"""By number of processes, of each."""


def environment(**more: object) -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120", "PYTHONPATH": path}
    return {**os.environ, **own, **{name: str(value) for name, value in more.items()}}


def launch(job: str, folder: Path, processes: int) -> list[subprocess.CompletedProcess[str]]:
    """The processes after their end, started as any launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": processes}
    command = [sys.executable, __file__, job, str(folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen(command, env=environment(**meeting, RANK=rank, LOCAL_RANK=rank), **pipes)
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    ends = zip(running, outputs, strict=True)
    return [subprocess.CompletedProcess(command, process.returncode, *output) for process, output in ends]


def torchrun(job: str, folder: Path, processes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [__file__, job, str(folder)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def ends(place: Path) -> list[subprocess.CompletedProcess[str]]:
    """Of two processes of which the second was killed."""
    return launch("killed", place, 2)


@pytest.fixture(scope="module")
def results(place: Path, ends: list[subprocess.CompletedProcess[str]]) -> Results:
    found = {}
    for count in (1, 2, 3):
        folder = place / str(count)
        folder.mkdir()
        if count == 1:
            work("everything", folder)
        else:
            done = [torchrun("everything", folder, 2)] if count == 2 else launch("everything", folder, count)
            assert all(one.returncode == 0 for one in done), "\n".join(one.stderr for one in done)
        found[count] = [torch.load(folder / f"result-{i}.pt", weights_only=False) for i in range(count)]
    return found


several = pytest.mark.parametrize("count", [2, 3])


def moments(statistics: Statistics) -> dict[str, Tensor]:
    """Mean, covariance and gradient moment of everything observed, by name."""
    found = {}
    for kind in ("inputs", "outputs"):
        for name, moment in getattr(statistics, kind).items():
            found[f"mean at {kind} of {name}"] = moment.mean
            if moment.second is not None:
                found[f"covariance at {kind} of {name}"] = moment.covariance
    return found | {f"gradient at {name}": moment.moment for name, moment in statistics.gradients.items()}


def assert_same_statistics(ours: Statistics, theirs: Statistics) -> None:
    counts = [(s.images, s.bad_images, s.tokens, s.settings, s.fingerprint) for s in (ours, theirs)]
    assert counts[0] == counts[1]
    expected = moments(theirs)
    assert expected.keys() == moments(ours).keys()
    for name, moment in moments(ours).items():
        assert relative(moment, expected[name]) < 1e-5, name


def same_bits(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)
    return one == other


# ---- the same results


@pytest.mark.parametrize("run", ["plain", "few", "one pass", "main unreadable"])
@several
def test_statistics_are_those_of_one_process(results: Results, count: int, run: str) -> None:
    alone = results[1][0][run]["statistics"]
    for result in results[count]:
        assert_same_statistics(result[run]["statistics"], alone)
        assert same(result[run]["statistics"], results[count][0][run]["statistics"])


@several
def test_unreadable_images_are_counted_once(results: Results, count: int) -> None:
    for result in results[count]:
        statistics = result["plain"]["statistics"]
        assert (statistics.images, statistics.bad_images) == (IMAGES - len(BAD), len(BAD))
        assert set(statistics.tokens.values()) == {17 * statistics.images}
        assert result["plain"]["evaluation"]["bad_images"] == len(BAD)


@several
def test_every_image_is_read_by_one_process(results: Results, count: int) -> None:
    read = [index for result in results[count] for index in result["one pass"]["read"]]
    assert sorted(read) == list(range(IMAGES))


@several
def test_every_part_is_solved_by_one_process(results: Results, count: int) -> None:
    for run, parts in (("plain", 6), ("low rank", 12), ("heads", 4)):
        solved = [name for result in results[count] for name in result[run]["solved"]]
        assert len(solved) == parts
        assert sorted(solved) == sorted(results[1][0][run]["solved"])
        assert all(result[run]["solved"] for result in results[count])


@pytest.mark.parametrize("run", ["plain", "few", *COMPENSATED, "distill bad", "searched"])
@several
def test_all_processes_end_with_the_same_bits(results: Results, count: int, run: str) -> None:
    main, *others = (result[run] for result in results[count])
    for other in others:
        for part in ("solutions", "layers", "predicted", "weights", "outputs", "evaluation"):
            assert same_bits(other[part], main[part]), part


@several
def test_measured_losses_are_those_of_one_process(results: Results, count: int) -> None:
    (alone,) = results[1][0]["plain"]["statistics"].scalings.values()
    for result in results[count]:
        (scaling,) = result["plain"]["statistics"].scalings.values()
        assert scaling.weights == alone.weights
        assert len(scaling.points) == len(alone.points) >= 3
        assert torch.tensor(scaling.points).numpy() == pytest.approx(torch.tensor(alone.points).numpy(), rel=1e-4)


@pytest.mark.parametrize(
    "run",
    ["plain", "few", *COMPENSATED, "distill bad", "searched"],
)
@several
def test_the_model_is_that_of_one_process(results: Results, count: int, run: str) -> None:
    alone, shared = results[1][0][run], results[count][0][run]
    assert shared["layers"] == alone["layers"]
    # Few images make singular statistics, whose inverse roots differ more than they do.
    assert relative(shared["outputs"], alone["outputs"].double()) < (1e-3 if run == "few" else 1e-5)


@pytest.mark.parametrize("run", ["few", *COMPENSATED])
@several
def test_compensation_is_that_of_one_process(results: Results, count: int, run: str) -> None:
    alone, shared = (results[processes][0][run]["compensation"] for processes in (1, count))
    losses = [point.loss for point in shared.points]
    # Ten images, or half of a joint model's ranks, say little about a random model's others.
    assert losses[-1] < losses[0] or run in ("few", "residual")
    assert losses == pytest.approx([point.loss for point in alone.points], rel=1e-3)
    assert (shared.images, shared.held_out_images) == (alone.images, alone.held_out_images)


@several
def test_figures_are_those_of_one_process(results: Results, count: int) -> None:
    alone = results[1][0]["plain"]["evaluation"]
    assert 0 < alone["top1_drop"]["value"] < alone["reference_top1"]["value"] < 1
    for name, value in results[count][0]["plain"]["evaluation"].items():
        if not isinstance(value, dict | int):
            assert name in ("precision", "dataset", "weights")  # the last is a digest: rounding differs
        else:
            assert value == pytest.approx(alone[name], rel=1e-4), name


@several
def test_values_travel_between_processes(results: Results, count: int) -> None:
    rows = torch.cat([torch.arange(i)[:, None].expand(i, 2) + 10.0 * i for i in range(count)])
    for result in results[count]:
        exchanged = result["exchanged"]
        assert exchanged["sums"] == [count, sum(range(count))]
        assert torch.equal(exchanged["rows"], rows)
        assert exchanged["mean"] == pytest.approx(sum(i * (3 + i) for i in range(count)) / sum(range(3, 3 + count)))
        assert exchanged["objects"] == [{"process": i} for i in range(count)]
        assert exchanged["main"] == "from 0"
        assert torch.equal(exchanged["last"], torch.full((2, 3), count - 1.0))


@several
def test_only_the_main_process_writes(results: Results, place: Path, count: int) -> None:
    names = [path.name for path in (place / str(count)).iterdir()]
    written = [name for name in names if not name.startswith(("result", "killed", "small"))]
    assert {name.split("-")[0] for name in written} == {"plain", "few", *COMPENSATED, "distill bad", "searched"}
    assert all(name.split("-")[1].startswith("0") for name in written)
    assert not any(".part" in name for name in names)


# ---- trouble


@several
def test_an_error_on_one_process_ends_all(results: Results, count: int) -> None:
    *others, last = (result["divided"] for result in results[count])
    assert last == Failure("ZeroDivisionError", "integer division or modulo by zero", reported=False)
    message = (
        f"Division failed on process {count - 1} of {count}: ZeroDivisionError: integer division or modulo by zero"
    )
    for process, failure in enumerate(others):
        assert failure == Failure("DistributedError", message, reported=process > 0)


@several
def test_nan_in_one_share_ends_all(results: Results, count: int) -> None:
    alone = results[1][0]["nan"]
    assert alone.kind == "CalibrationError"
    for process, result in enumerate(results[count]):
        failure = result["nan"]
        if process == 1:
            assert failure == alone
        else:
            assert failure.kind == "DistributedError"
            assert failure.message.endswith(f"on process 1 of {count}: CalibrationError: {alone.message}")


@pytest.mark.parametrize("run", ["unreadable", "nothing to evaluate"])
@several
def test_all_processes_say_that_no_image_can_be_read(results: Results, count: int, run: str) -> None:
    for result in results[count]:
        assert result[run].kind == "DataError"
        assert result[run].message.startswith("None of the 90 images of the images can be read")


def test_a_killed_process_ends_the_other(ends: list[subprocess.CompletedProcess[str]]) -> None:
    left, dead = ends
    assert dead.returncode == -signal.SIGKILL
    assert left.returncode == 1
    assert "DistributedError: Process 0 of 2 lost the others" in left.stderr


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_processes_goes_on_where_some_were_killed(results: Results, place: Path, count: int) -> None:
    assert Statistics.load(place / "killed").images == 32
    read = [index for result in results[count] for index in result["resumed"]["read"]]
    assert sorted(read) == list(range(32, IMAGES))
    for result in results[count]:
        assert result["resumed"]["statistics"].images == IMAGES
        assert_same_statistics(result["resumed"]["statistics"], results[1][0]["one pass"]["statistics"])


# ---- the terminal


@pytest.mark.parametrize("command", ["compress", "evaluate"])
def test_a_command_prints_its_table_once(results: Results, command: str) -> None:
    main, other = (result["commands"][command] for result in results[2])
    assert (main.code, main.err) == (0, "")
    assert main.out.count("MACs per image") == 1
    assert other == (0, "", "")


def test_one_complete_model_is_saved(results: Results, place: Path) -> None:
    assert "saved to" in results[2][0]["commands"]["compress"].out
    assert {path.name for path in (place / "2").glob("small*")} == {"small", "small.safetensors"}
    model = AutoModelForImageClassification.from_pretrained(place / "2" / "small")
    assert model.num_parameters() / 205_002 == pytest.approx(0.4, rel=0.005)
    report = json.loads((place / "2" / "small" / "compression_report.json").read_text(encoding="utf-8"))
    assert report["compensation"]["points"][-1]["stage"] == "distill"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("existing output", "exists and is not empty"),
        ("wrong setting", "keep_ratio must lie in"),
        ("small budget", "out of reach"),
        ("nothing to evaluate", "cannot be loaded"),
        ("nothing to inspect", "There is no folder or file"),
        ("nothing to plan", "There is no statistics file"),
    ],
)
def test_an_error_of_all_processes_is_printed_once(results: Results, command: str, message: str) -> None:
    main, other = (result["commands"][command] for result in results[2])
    assert other == (1, "", "")
    assert (main.code, main.out) == (1, "")
    assert main.err.startswith("error: ")
    assert main.err.count("\n") == 1
    assert message in main.err


# ---- without processes


@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_moments_stay_when_their_shift_changes(mean: float, order: int) -> None:
    data = vectors(500, 12, mean)
    weights = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 2
    moment = streamed(data, weights, order)
    shift = moment.shift + torch.randn(12, generator=torch.Generator().manual_seed(3))
    moment.reshift(shift)
    exact, w = data.double(), weights.double()
    expected = w @ exact / w.sum()
    covariance = (exact - expected).T @ (w[:, None] * (exact - expected)) / w.sum()
    assert torch.equal(moment.shift, shift)
    assert relative(moment.mean, expected) < 1e-6
    if order:
        assert relative(moment.variance, covariance.diagonal()) < 1e-5
    if order == 2:
        assert relative(moment.covariance, covariance) < 1e-5


def test_an_empty_moment_takes_any_shift() -> None:
    moment = streamed(vectors(10, 4, 0.0), None, order=2)
    moment.clear()
    moment.reshift(torch.arange(4.0))
    assert torch.equal(moment.shift, torch.arange(4.0))
    assert not moment.second.any()  # type: ignore[union-attr]
    assert moment.weight == 0


def dearest_hand(costs: list[float], owners: Sequence[int], hands: int) -> float:
    loads = [0.0] * hands
    for cost, owner in zip(costs, owners, strict=True):
        loads[owner] += cost
    return max(loads)


@pytest.mark.parametrize("hands", [1, 2, 3, 8])
@pytest.mark.parametrize("jobs", [0, 1, 5, 48])
def test_every_job_is_dealt_and_no_hand_has_a_job_too_many(jobs: int, hands: int) -> None:
    costs = torch.rand(jobs, generator=torch.Generator().manual_seed(jobs)).tolist()
    owners = deal(costs, hands)
    assert len(owners) == jobs
    assert set(owners) <= set(range(hands))
    assert len(set(owners)) == min(jobs, hands)
    assert dearest_hand(costs, owners, hands) <= sum(costs) / hands + max(costs, default=0.0)


@pytest.mark.parametrize("hands", [2, 3])
@pytest.mark.parametrize("costs", [[3, 3, 2, 2, 2], [5, 5, 4, 4, 3, 3, 3], [9, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7]])
def test_dealing_is_within_a_third_of_the_best(costs: list[float], hands: int) -> None:
    best = min(dearest_hand(costs, owners, hands) for owners in product(range(hands), repeat=len(costs)))
    assert dearest_hand(costs, deal(costs, hands), hands) <= (4 / 3 - 1 / (3 * hands)) * best + 1e-9


@pytest.mark.parametrize("count", [0, 1, 7, 12])
@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_shares_cover_everything_once(count: int, start: int, processes: int) -> None:
    places = [SimpleNamespace(process_index=i, num_processes=processes) for i in range(processes)]
    shares = [own_share(place, count, start) for place in places]  # type: ignore[arg-type]
    assert sorted(index for share in shares for index in share) == list(range(start, count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


if __name__ == "__main__":
    import test_distribution  # under the name by which the results find their classes again

    faulthandler.dump_traceback_later(SECONDS / 2, exit=True)
    test_distribution.work(sys.argv[1], Path(sys.argv[2]))
