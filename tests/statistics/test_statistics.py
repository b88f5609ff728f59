"""Streaming moments against float64, and the statistics file."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_vitcompress.architectures.layers import LayerInfo
from hf_vitcompress.errors import CalibrationError, OutputError
from hf_vitcompress.statistics import sealed_file
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
        identity={"another model": {"weights": "0123456789abcdef"}},
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


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e-6, 1e6])
def test_features_that_never_vary_have_no_covariance(constant: float) -> None:
    """And no negative one, which rounding would leave."""
    data = vectors(1000, 6, mean=1.0)
    varying = streamed(data.clone(), None).covariance
    data[:, 2:4] = constant
    covariance = streamed(data, None).covariance
    assert torch.equal(covariance[2:4], torch.zeros(2, 6))
    assert torch.equal(covariance[:, 2:4], torch.zeros(6, 2))
    others = torch.tensor([0, 1, 4, 5])
    assert relative(covariance[others][:, others], varying[others][:, others]) < 1e-5


def test_what_is_not_finite_is_no_feature_that_never_varies() -> None:
    moment = streamed(vectors(50, 3, 0.0), None)
    assert moment.second is not None
    moment.second[1, 1] = torch.nan
    assert moment.covariance[1, 1].isnan()


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


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the plain part of a statistics file."""
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()[sealed_file.METADATA])
        return {key: file.get_tensor(key) for key in file.keys()}, plain  # noqa: SIM118 (not a dict)


def edited(path: Path, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Write both as they are, with the checksum that is in `plain`."""
    save_file(tensors, path, metadata={sealed_file.METADATA: json.dumps(plain)})


def sealed(path: Path, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Write both with a checksum that fits."""
    content = {name: value for name, value in plain.items() if name not in ("checksum", "format_version")}
    sealed_file.write_sealed(path, tensors, content)


@pytest.mark.parametrize("change", [-1, 1])
def test_file_of_another_format_version_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch, change: int) -> None:
    tensors, plain = contents(saved)
    with monkeypatch.context() as patch:
        patch.setattr(sealed_file, "FORMAT_VERSION", sealed_file.FORMAT_VERSION + change)
        sealed(saved, tensors, plain)
    with pytest.raises(CalibrationError, match="Another version of this package wrote"):
        Statistics.load(saved)


def test_file_of_the_versions_without_a_checksum_is_refused(saved: Path) -> None:
    tensors, plain = contents(saved)
    edited(saved, tensors, {**{name: plain[name] for name in plain if name != "checksum"}, "format_version": 3})
    with pytest.raises(CalibrationError, match="Another version of this package wrote"):
        Statistics.load(saved)


@pytest.mark.parametrize("name", ["checksum", "format_version", "images"])
def test_file_without_one_entry_is_refused(saved: Path, name: str) -> None:
    tensors, plain = contents(saved)
    del plain[name]
    edited(saved, tensors, plain)
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        Statistics.load(saved)


def test_no_bit_of_the_values_changes_unnoticed(saved: Path) -> None:
    whole, generator = saved.read_bytes(), random.Random(0)
    values = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(200):
        flipped, place = bytearray(whole), generator.randrange(values, len(whole))
        flipped[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(flipped)
        with pytest.raises(CalibrationError, match="checksum"):
            Statistics.load(saved)


EDITS: dict[str, Callable[[dict[str, torch.Tensor], dict[str, Any]], object]] = {
    "a value": lambda tensors, _: tensors["inputs/block.0.full/first"].mul_(2),
    "NaN": lambda tensors, _: tensors["gradients/block.0.fc2/second"].fill_(torch.nan),
    "a tensor less": lambda tensors, _: tensors.pop("inputs/block.0.full/weight"),
    "another shape": lambda tensors, _: tensors.update({"inputs/block.0.full/first": torch.zeros(3)}),
    "another type": lambda tensors, _: tensors.update({"gradients/block.0.fc2/second": torch.ones(4, 4).int()}),
    "a tensor more": lambda tensors, _: tensors.update({"inputs/block.0.full/third": torch.zeros(3)}),
    "a strange name": lambda tensors, _: tensors.update({"inputs": torch.zeros(3)}),
    "settings": lambda _, plain: plain["settings"].update(seed=7),
    "identity": lambda _, plain: plain["identity"].clear(),
    "type of a number": lambda _, plain: plain.update(images="16"),
    "type of a mapping": lambda _, plain: plain.update(tokens=[1, 2]),
    "corrections": lambda _, plain: plain.update(corrections={"fisher": {"points": [[1]]}}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_file_is_refused(saved: Path, edit: str) -> None:
    tensors, plain = contents(saved)
    EDITS[edit](tensors, plain)
    edited(saved, tensors, plain)
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        Statistics.load(saved)


SOUND = ("a value", "NaN", "settings", "identity")
"""Edits after which a file still is one of statistics; whether they are of a model shows when one is there."""


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit not in SOUND])
def test_what_makes_no_statistics_is_refused_even_with_a_checksum(saved: Path, edit: str) -> None:
    tensors, plain = contents(saved)
    EDITS[edit](tensors, plain)
    sealed(saved, tensors, plain)
    with pytest.raises(CalibrationError, match="not a complete statistics file"):
        Statistics.load(saved)


def test_failed_save_leaves_the_earlier_file_and_no_rubbish(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: dict, filename: Path, metadata: dict) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(sealed_file, "save_file", full_disk)
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


@pytest.mark.parametrize(
    ("kind", "name", "change"),
    [
        ("inputs", "block.0.full", lambda moment: moment.first.fill_(torch.nan)),
        ("inputs", "block.0.full", lambda moment: moment.shift.fill_(torch.inf)),
        ("inputs", "block.0.full", lambda moment: moment.second.fill_(torch.inf)),
        ("gradients", "block.0.fc2", lambda moment: moment.second.fill_(torch.nan)),
        ("gradients", "block.0.fc2", lambda moment: moment.count.fill_(torch.nan)),
        ("inputs", "block.0.full", lambda moment: vars(moment).update(vars(streamed(vectors(9, 5, 0.0), None)))),
        ("gradients", "block.0.fc2", lambda moment: vars(moment).update(second=torch.ones(5, 5))),
        ("outputs", "block.0.fc2", lambda moment: vars(moment).update(vars(streamed(vectors(9, 6, 0.0), None)))),
    ],
)
def test_moments_that_were_changed_are_named_with_their_layer(
    kind: str, name: str, change: Callable[[Any], object]
) -> None:
    statistics = small_statistics()
    layer = LayerInfo("block.0.fc2", "fc2", 0, "block.0.full", 6, 4)
    statistics.check_layers([layer])
    change(getattr(statistics, kind)[name])
    with pytest.raises(CalibrationError, match=r"block\.0\.fc2.*another size or is not finite"):
        statistics.check_layers([layer])
