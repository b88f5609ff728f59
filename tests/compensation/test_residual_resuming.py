"""Residual compensation that is interrupted, or made twice."""

from pathlib import Path
from typing import Any

import pytest

from hf_vitcompress.compensation.residual import ResidualCompensation
from support.models import tiny_config
from support.residuals import FAMILIES, IN_STAGES, NEVER_WORSE, judged
from support.students import changed, checkpoint, compressed, lively, state_of
from support.zoo import Head


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Break off once `after` blocks are solved; the list counts all that are."""
    solved: list[int] = []
    solve = ResidualCompensation._solve_block

    def solving(self: ResidualCompensation, *args: Any) -> Any:
        if len(solved) == after:
            raise KeyboardInterrupt
        solved.append(1)
        return solve(self, *args)

    monkeypatch.setattr(ResidualCompensation, "_solve_block", solving)
    return solved


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(lively(config=tiny_config(num_hidden_layers=5)), skip_modules=["layers.3.*"], keep_ratio=0.5)
    whole = case.student()
    expected = case.residual(whole).run(checkpoint())
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            case.residual(case.student()).run(checkpoint(tmp_path / "stage"))
    student = case.student()
    with monkeypatch.context() as patch:
        solved = interrupt(patch, 99)
        points = case.residual(student).run(checkpoint(tmp_path / "stage"))
    assert len(solved) == 5 - after
    assert not changed(state_of(whole), student)
    assert [(p.stage, p.images, p.loss) for p in points] == [(p.stage, p.images, p.loss) for p in expected]


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("head", [head for head in FAMILIES if head.name in IN_STAGES], ids=str)
def test_so_does_one_that_goes_on_in_another_stage(
    head: Head, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compressed(head.dense(), head.pixels(60), keep_ratio=0.6)
    judged(monkeypatch, NEVER_WORSE)
    whole, student = case.student(), case.student()
    case.residual(whole).run(checkpoint())
    judged(monkeypatch, NEVER_WORSE)
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            case.residual(case.student()).run(checkpoint(tmp_path / "stage"))
    case.residual(student).run(checkpoint(tmp_path / "stage"))
    assert not changed(state_of(whole), student)


@pytest.mark.parametrize("losses", [[1.0, 1.2, 1.1], [1.0, 0.8, 0.9], [1.0, 0.9, 0.8]])
def test_a_finished_run_is_not_run_again(losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = compressed()
    judged(monkeypatch, losses)
    first, second = case.student(), case.student()
    points = case.residual(first).run(checkpoint(tmp_path / "stage"))
    interrupt(monkeypatch, 0)
    again = case.residual(second).run(checkpoint(tmp_path / "stage"))
    assert again == points
    assert not changed(state_of(first), second)


def test_two_runs_are_alike_to_the_bit() -> None:
    case = compressed()
    first, second = case.student(), case.student()
    for student in (first, second):
        case.residual(student).run(checkpoint())
    assert not changed(state_of(first), second)
