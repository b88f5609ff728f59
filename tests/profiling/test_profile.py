"""What a latency profile says between its points, and what its file may hold."""

import itertools
import json
import math
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_vitcompress import LatencyProfile
from hf_vitcompress.errors import ConfigError
from hf_vitcompress.profiling.operations import Activation, Attention, Merge, Product, macs_of_operation, without_tokens
from hf_vitcompress.profiling.profile import STEP, Grid, Steps, content_digest, is_profile
from support.profiles import CONDITIONS, even_profile, even_seconds, grid_of

AXES = ((8, 24, 100), (3, 4, 50, 51))


@pytest.mark.parametrize("sizes", list(itertools.product((1, 8, 17, 24, 99.5, 100, 400), (1, 3, 3.5, 20, 51, 90))))
def test_what_is_linear_in_each_size_is_met_exactly(sizes: tuple[float, float]) -> None:
    def plane(i: float, o: float) -> float:
        return 2 + 0.5 * i + 3 * o + 0.25 * i * o

    assert grid_of(AXES, plane).at(sizes) == pytest.approx(plane(*sizes), rel=1e-12)


def test_between_points_each_axis_is_linear_as_in_numpy() -> None:
    generator = np.random.default_rng(0)
    seconds = generator.random((3, 4))
    grid = Grid(AXES, tuple(seconds.ravel().tolist()))
    for i, o in itertools.product(np.linspace(8, 100, 9), np.linspace(3, 51, 9)):
        rows = [np.interp(o, AXES[1], row) for row in seconds]
        assert grid.at((i, o)) == pytest.approx(float(np.interp(i, AXES[0], rows)), rel=1e-12)


def test_beyond_the_points_the_last_piece_goes_on_and_never_below_nothing() -> None:
    grid = Grid(((10, 20, 30),), (5.0, 1.0, 4.0))
    assert grid.at((40,)) == pytest.approx(7.0)
    assert grid.at((5,)) == pytest.approx(7.0)
    assert Grid(((10, 20),), (5.0, 1.0)).at((100,)) == 0.0


def test_an_axis_of_one_point_is_taken_for_a_share() -> None:
    grid = Grid(((10,), (2, 4)), (1.0, 3.0))
    assert grid.at((10, 3)) == pytest.approx(2.0)
    assert grid.at((5, 3)) == pytest.approx(1.0)


@pytest.mark.parametrize("operation", [Product(17, 24, 40), Activation(17, 40), Attention(17, 17, 3, 8, 5)])
def test_a_profile_looks_its_operations_up(operation: Any) -> None:
    assert even_profile([17]).seconds(operation) == pytest.approx(even_seconds(operation), rel=1e-9)


def test_other_numbers_of_vectors_lie_between_those_measured() -> None:
    profile = even_profile([4, 16])
    assert profile.seconds(Product(10, 32, 32)) == pytest.approx(even_seconds(Product(10, 32, 32)))
    assert profile.seconds(Product(20, 32, 32)) == pytest.approx(even_seconds(Product(20, 32, 32)))
    alone = even_profile([16])
    assert alone.seconds(Product(8, 32, 32)) == pytest.approx(alone.seconds(Product(16, 32, 32)) / 2)


def test_operations_that_were_not_measured_take_no_time() -> None:
    profile = replace(even_profile([17]), activations=None, attentions={})
    assert profile.seconds(Activation(17, 32)) == profile.seconds(Attention(17, 17, 4, 8, 8)) == 0
    assert profile.seconds(Merge(17, 32)) == 0


def test_sizes_that_do_not_fill_a_step_are_taken_for_larger() -> None:
    eighth = STEP // 8
    steps = Steps(inputs=(0.0, 3.0, *[0.0] * 6))
    profile, even = replace(even_profile([17]), steps=steps), even_profile([17])
    for multiple in (STEP, 2 * STEP):
        assert profile.seconds(Product(17, multiple, 32)) == even.seconds(Product(17, multiple, 32))
        own, larger = multiple + eighth, multiple + eighth + 3
        assert profile.seconds(Product(17, own, 32)) == pytest.approx(even_seconds(Product(17, larger, 32)))
        # Between two measured remainders it is the next that has to be filled, and what that one adds.
        assert profile.seconds(Product(17, multiple + 1, 32)) == pytest.approx(even_seconds(Product(17, larger, 32)))
    assert profile.seconds(Product(17, STEP, 33)) == pytest.approx(even_seconds(Product(17, STEP, 40)))


def test_merged_tokens_leave_fewer_rows_and_keys() -> None:
    assert without_tokens(Product(17, 8, 4), 5) == Product(12, 8, 4)
    assert without_tokens(Attention(17, 17, 2, 8, 4), 5) == Attention(12, 12, 2, 8, 4)
    assert without_tokens(Activation(17, 8), 0) == Activation(17, 8)
    assert without_tokens(Product(4, 8, 4), 9).rows == 1


def test_multiplications_of_operations() -> None:
    assert macs_of_operation(Product(3, 5, 7)) == 105
    assert macs_of_operation(Attention(3, 4, 2, 8, 5)) == 3 * 4 * 2 * (8 + 5)
    assert macs_of_operation(Activation(3, 5)) == 0


# ---- its file


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = replace(even_profile([4, 17], head_dims=(8, 16)), steps=Steps(outputs=(0.0, 1.5, *[0.0] * 6)))
    profile.seconds(Product(17, 20, 20))
    profile.save(tmp_path / "p.json")
    again = LatencyProfile.load(tmp_path / "p.json")
    assert again == profile
    assert again.seconds(Product(9, 30, 20)) == profile.seconds(Product(9, 30, 20))
    assert is_profile(tmp_path / "p.json")


def test_a_file_that_is_missing_or_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="latency profile"):
        LatencyProfile.load(tmp_path / "none.json")
    for text in ("[]", "{}", '{"format": 99}', '"text"'):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(ConfigError, match="is no latency profile; `vitcompress profile` makes one"):
            LatencyProfile.load(tmp_path / "p.json")
        assert not is_profile(tmp_path / "p.json")


DAMAGES: dict[str, Any] = {
    "no dense": lambda content: content.pop("dense"),
    "dense of no time": lambda content: content.update(dense=0.0),
    "no products": lambda content: content.update(products={}),
    "text for seconds": lambda content: content["products"]["17"].update(seconds="fast"),
    "a point missing": lambda content: content["products"]["17"]["seconds"].pop(),
    "an axis out of order": lambda content: content["products"]["17"].update(axes=[[64, 8], [8, 64]]),
    "an axis of nothing": lambda content: content["products"]["17"].update(axes=[[], [8, 64]], seconds=[]),
    "negative seconds": lambda content: content["activations"]["seconds"].__setitem__(0, -1.0),
    "no conditions": lambda content: content.update(conditions={}),
    "seconds beyond any": lambda content: content["products"]["17"]["seconds"].__setitem__(0, 1e308),
    "seconds that are none": lambda content: content["attentions"]["8"]["seconds"].__setitem__(0, math.nan),
    "dense without end": lambda content: content.update(dense=math.inf),
    "steps of no number": lambda content: content.update(steps={"inputs": [], "outputs": []}),
    "steps beyond a step": lambda content: content["steps"].update(inputs=[0.0] * 7 + [1e9]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    """Even where its digest was made to fit."""
    content = json.loads(even_profile([17]).to_json())
    DAMAGES[damage](content)
    own = {name: value for name, value in content.items() if name not in ("format", "digest")}
    (tmp_path / "p.json").write_text(json.dumps({**content, "digest": content_digest(own)}))
    with pytest.raises(ConfigError, match=r"is damaged \(.*\); make it again with `vitcompress profile`") as caught:
        LatencyProfile.load(tmp_path / "p.json")
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)


EDITS: dict[str, Any] = {
    "other seconds": lambda content: content["products"]["17"]["seconds"].__setitem__(0, 0.5),
    "another device": lambda content: content["conditions"].update(device="another CPU"),
    "no attentions": lambda content: content.pop("attentions"),
    "no steps": lambda content: content.pop("steps"),
    "no activations": lambda content: content.update(activations=None),
    "no digest": lambda content: content.pop("digest"),
    "something more": lambda content: content.update(note="mine"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_file_is_refused(edit: str, tmp_path: Path) -> None:
    content = json.loads(even_profile([17]).to_json())
    EDITS[edit](content)
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"it was changed after it was written\); make it again with `vitcompress"):
        LatencyProfile.load(tmp_path / "p.json")


def test_no_bit_of_a_file_changes_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    content = even_profile([17]).to_json().encode()
    for bit in random.Random(0).sample(range(8 * len(content.rstrip())), 200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        if content[bit // 8 : bit // 8 + 1] == b"e" and damaged[bit // 8] == ord("E"):
            continue  # 1E-05 is 1e-05; a letter of a name would be refused
        with pytest.raises(ConfigError, match="latency profile"):
            LatencyProfile.load(file)


def test_half_a_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(even_profile([17]).to_json()[:200])
    with pytest.raises(
        ConfigError, match=r"is not JSON that can be read: .*\. Make it again with `vitcompress profile`"
    ):
        LatencyProfile.load(tmp_path / "p.json")


@pytest.mark.parametrize("name", list(asdict(CONDITIONS)))
def test_another_model_or_device_needs_another_profile(name: str) -> None:
    profile = even_profile([17])
    profile.check(CONDITIONS)
    value = getattr(CONDITIONS, name)
    other = (1, 2, 3) if isinstance(value, tuple) else 7 if isinstance(value, int) else "another"
    with pytest.raises(ConfigError, match=f"measured for the {name.replace('_', ' ')} "):
        profile.check(replace(CONDITIONS, **{name: other}))
