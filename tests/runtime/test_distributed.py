"""Several processes as one: the same results on each, said and written once, and an end where one of them ends.

Real processes on CPUs, of which every launch does all its checks; torch's own launcher starts two of them.
"""

import json
import signal
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from hf_vitcompress.runtime.distributed import deal, own_share
from hf_vitcompress.statistics.statistics import Statistics
from support.moments import relative, same, streamed, vectors
from support.processes import Ended, launched, together
from support.sharing import BAD, COMPENSATED, IMAGES, MEASURING, Failure, Results, work


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def ends(place: Path) -> list[Ended]:
    """Of two processes of which the second was killed."""
    return together(work, "killed", place, processes=2)


@pytest.fixture(scope="module")
def results(place: Path, ends: list[Ended]) -> Results:
    found = {}
    for count in (1, 2, 3):
        folder = place / str(count)
        folder.mkdir()
        if count == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unreadable images and of few tokens, as other processes print them
                work("everything", folder)
        else:
            start = launched if count == 2 else together
            done = start(work, "everything", folder, processes=count)
            assert all(one.code == 0 for one in done), "\n".join(one.err for one in done)
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
    counts = [(s.images, s.bad_images, s.tokens, s.settings, s.weights) for s in (ours, theirs)]
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
        assert (statistics.images, statistics.bad_images) == (IMAGES - MEASURING - len(BAD), len(BAD))
        assert set(statistics.tokens.values()) == {17 * statistics.images}
        assert result["plain"]["evaluation"]["bad_images"] == len(BAD)


@several
def test_every_image_is_read_by_one_process(results: Results, count: int) -> None:
    read = [index for result in results[count] for index in result["one pass"]["read"]]
    assert sorted(read) == list(range(IMAGES))


@several
def test_every_part_is_solved_by_one_process(results: Results, count: int) -> None:
    for run, groups in (("plain", 6), ("low rank", 12), ("heads", 4)):
        solved = [name for result in results[count] for name in result[run]["solved"]]
        assert len(solved) == groups
        assert sorted(solved) == sorted(results[1][0][run]["solved"])
        assert all(result[run]["solved"] for result in results[count])


@pytest.mark.parametrize("run", ["plain", "few", *COMPENSATED, "searched"])
@several
def test_all_processes_end_with_the_same_bits(results: Results, count: int, run: str) -> None:
    main, *others = (result[run] for result in results[count])
    for other in others:
        for group in ("solutions", "layers", "predicted", "weights", "outputs", "evaluation"):
            assert same_bits(other[group], main[group]), group


@several
def test_measured_losses_are_those_of_one_process(results: Results, count: int) -> None:
    (alone,) = results[1][0]["plain"]["statistics"].corrections.values()
    for result in results[count]:
        (correction,) = result["plain"]["statistics"].corrections.values()
        assert correction.weights == alone.weights
        assert len(correction.points) == len(alone.points) >= 3
        assert torch.tensor(correction.points).numpy() == pytest.approx(torch.tensor(alone.points).numpy(), rel=1e-4)


@pytest.mark.parametrize("run", ["plain", "few", *COMPENSATED, "searched"])
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
            assert name in (
                "precision",
                "dataset",
                "split",
                "labels",
                "weights",
            )  # the last is a digest: rounding differs
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
    assert {name.split("-")[0] for name in written} == {"plain", "few", *COMPENSATED, "searched"}
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


def test_a_killed_process_ends_the_other(ends: list[Ended]) -> None:
    left, dead = ends
    assert dead.code == -signal.SIGKILL
    assert left.code == 1
    assert "DistributedError: Process 0 of 2 lost the others" in left.err


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
        ("nothing to evaluate", "There is no folder"),
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
@pytest.mark.parametrize("full", [False, True])
def test_moments_stay_when_their_shift_changes(mean: float, full: bool) -> None:
    data = vectors(500, 12, mean)
    weights = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 2
    moment = streamed(data, weights, full)
    shift = moment.shift + torch.randn(12, generator=torch.Generator().manual_seed(3))
    moment.reshift(shift)
    exact, w = data.double(), weights.double()
    expected = w @ exact / w.sum()
    covariance = (exact - expected).T @ (w[:, None] * (exact - expected)) / w.sum()
    assert torch.equal(moment.shift, shift)
    assert relative(moment.mean, expected) < 1e-6
    if full:
        assert relative(moment.covariance, covariance) < 1e-5
        assert relative(moment.covariance.diagonal(), covariance.diagonal()) < 1e-5


def test_an_empty_moment_takes_any_shift() -> None:
    moment = streamed(vectors(10, 4, 0.0), None, full=True)
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
