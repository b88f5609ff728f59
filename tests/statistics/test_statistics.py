"""Streaming moments against float64, and the statistics file."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_vitcompress.architectures.layers import LayerInfo
from hf_vitcompress.errors import CalibrationError, OutputError
from hf_vitcompress.statistics import statistics as statistics_module
from hf_vitcompress.statistics.loss_correction import LossCorrection
from hf_vitcompress.statistics.moments import GradientMoment
from hf_vitcompress.statistics.statistics import Statistics
from support.moments import CPU, relative, same, streamed, vectors


def small_statistics() -> Statistics:
    data = vectors(64, 6, mean=3.0)
    importance = torch.linspace(0.1, 1.9, 64)
    gradient = torch.linspace(0.0, 1.0, 16).reshape(4, 4)
    return Statistics(
        inputs={
            "block.0.full": streamed(data, None),
            "block.0.mean": streamed(data, None, full=False),
        },
        outputs={"block.0.fc2": streamed(data[:, :4], importance)},
        gradients={"block.0.fc2": GradientMoment(torch.tensor(7.0, dtype=torch.float64), gradient)},
        images=16,
        tokens={"block.0.full": 64, "block.0.mean": 64},
        bad_images=2,
        settings={"metric": "fisher", "token_weighting": 0.2, "seed": 0},
        weights="0123456789abcdef",
        corrections={
            "fisher/greedy/low_rank/low_rank/fisher/repaired": LossCorrection(
                {"q": 4.0}, [(0.1, 0.3), (0.4, 0.5)], 96, 0.07
            ),
            "fisher/greedy/joint/auto/fisher/cut": LossCorrection({}, [(0.2, 0.3)]),
        },
        timing={"calibrate": 1.5},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "statistics.safetensors"
    small_statistics().save(path)
    return path


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_agree_with_float64_even_far_from_zero(mean: float, weighted: bool) -> None:
    data = vectors(1050, 24, mean)
    weights = torch.rand(1050, generator=torch.Generator().manual_seed(1)) * 2 if weighted else None
    moment = streamed(data, weights)
    exact = data.double()
    w = torch.ones(1050, dtype=torch.float64) if weights is None else weights.double()
    expected_mean = w @ exact / w.sum()
    centred = exact - expected_mean
    covariance = centred.T @ (w[:, None] * centred) / w.sum()
    assert relative(moment.mean, expected_mean) < 1e-5
    assert relative(moment.covariance, covariance) < 1e-5
    assert relative(moment.moment, exact.T @ (w[:, None] * exact) / w.sum()) < 1e-5


def test_mean_of_near_constant_vectors_keeps_its_small_spread() -> None:
    data = vectors(1000, 8, mean=1e4) * 0.01 + 50.0
    moment = streamed(data, None)
    assert relative(moment.covariance, torch.cov(data.double().T, correction=0)) < 1e-5


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_moment_of_the_mean_alone_has_that_of_the_full_one(mean: float) -> None:
    data = vectors(500, 12, mean)
    full, alone = streamed(data, None), streamed(data, None, full=False)
    assert alone.second is None
    assert torch.equal(alone.mean, full.mean)


def test_covariance_is_exactly_symmetric() -> None:
    moment = streamed(vectors(300, 16, 1.0), None)
    assert torch.equal(moment.covariance, moment.covariance.T)
    assert torch.equal(moment.moment, moment.moment.T)


def test_batch_boundaries_do_not_matter() -> None:
    data = vectors(1000, 16, 5.0)
    one, many = streamed(data, None, batch=1000), streamed(data, None, batch=7)
    assert relative(many.covariance, one.covariance) < 1e-5
    assert relative(many.mean, one.mean) < 1e-6


@pytest.mark.parametrize("wanted", ["covariance", "moment"])
def test_moment_of_the_mean_alone_refuses_to_give_more(wanted: str) -> None:
    moment = streamed(vectors(10, 4, 0.0), None, full=False)
    with pytest.raises(CalibrationError, match="calibrate again"):
        getattr(moment, wanted)


def test_diagonal_gradient_moment_refuses_to_give_the_full_one() -> None:
    with pytest.raises(CalibrationError, match="calibrate again"):
        _ = GradientMoment.empty((4,), CPU).moment


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_moment_that_is_spoilt_is_not_finite(value: float) -> None:
    data = vectors(20, 4, 0.0)
    data[3, 2] = value
    assert not streamed(data, None).is_finite()
    data[3, 2] = 1.0
    assert streamed(data, None).is_finite()


def test_save_and_load_return_the_same_bits(saved: Path) -> None:
    loaded = Statistics.load(saved)
    assert same(loaded, small_statistics())
    assert loaded.timing == {"calibrate": 1.5}
    assert loaded.inputs["block.0.mean"].second is None


def test_statistics_without_gradients_and_corrections_survive_the_file(tmp_path: Path) -> None:
    statistics = replace(small_statistics(), outputs={}, gradients={}, corrections={})
    statistics.save(tmp_path / "new" / "folder" / "s")
    assert same(Statistics.load(tmp_path / "new" / "folder" / "s"), statistics)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CalibrationError, match="no statistics file"):
            Statistics.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        Statistics.load(saved)


@pytest.mark.parametrize("content", [b"\x00" * 100, b"\xff" * 100, b"a text file\n" * 9])
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        Statistics.load(path)


def test_other_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        Statistics.load(tmp_path / "model.safetensors")


def rewritten(path: Path, **changes: object) -> None:
    """Change the plain part of a statistics file; a value of `None` drops the entry."""
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["vitcompress_statistics"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    plain = {key: value for key, value in {**plain, **changes}.items() if value is not None}
    save_file(tensors, path, metadata={"vitcompress_statistics": json.dumps(plain)})


@pytest.mark.parametrize("change", [-1, 1])
def test_file_of_another_format_version_is_refused(saved: Path, change: int) -> None:
    rewritten(saved, format_version=statistics_module.FORMAT_VERSION + change)
    with pytest.raises(CalibrationError, match="Another version of this package wrote"):
        Statistics.load(saved)


def test_file_without_a_format_version_is_refused(saved: Path) -> None:
    rewritten(saved, format_version=None)
    with pytest.raises(CalibrationError):
        Statistics.load(saved)


def test_failed_save_leaves_the_earlier_file_and_no_rubbish(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: dict, filename: Path, metadata: dict) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(statistics_module, "save_file", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        small_statistics().save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_layers_that_were_not_observed_are_refused() -> None:
    statistics = small_statistics()
    known = LayerInfo("block.0.fc1", "fc1", 0, "block.0.full", 6, 12)
    statistics.check_layers([known])
    with pytest.raises(CalibrationError, match=r"block\.1\.fc1"):
        statistics.check_layers([known, replace(known, name="block.1.fc1", input_name="block.1.full")])
