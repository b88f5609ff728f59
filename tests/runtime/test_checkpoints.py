"""What a stage writes down and reads again."""

import io
import os
import pickle
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hf_vitcompress.errors import CompensationError, OutputError
from hf_vitcompress.runtime import identity
from hf_vitcompress.runtime.checkpoints import Checkpoint, remove_checkpoints
from hf_vitcompress.runtime.files import hidden_beside
from support.students import checkpoint


def state() -> dict[str, Any]:
    return {
        "step": 3,
        "loss": 0.1,
        "nothing": None,
        "points": [{"stage": "distill", "loss": float("inf")}],
        "parameters": {name: torch.randn(4, 3).to(dtype) for name, dtype in (("a", torch.float32), ("b", torch.half))},
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    }


def test_what_was_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    saved = state()
    checkpoint(tmp_path / "stage").save(saved)
    loaded = checkpoint(tmp_path / "stage").load()
    assert loaded is not None
    for name, tensor in saved.pop("parameters").items():
        assert loaded["parameters"][name].dtype == tensor.dtype
        assert torch.equal(loaded["parameters"][name], tensor)
    assert {name: loaded[name] for name in saved} == saved


def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = checkpoint()
    nowhere.save(state())
    assert nowhere.load() is None
    assert not list(tmp_path.iterdir())


def test_before_the_first_save_there_is_nothing(tmp_path: Path) -> None:
    assert checkpoint(tmp_path / "stage").load() is None


def test_the_last_save_counts(tmp_path: Path) -> None:
    kept = checkpoint(tmp_path / "new folder" / "stage")
    for step in (1, 2):
        kept.save({"step": step})
    assert kept.load() == {"step": 2}
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["stage"]


def test_seconds_of_earlier_runs_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for seconds, before in ((10, 0), (5, 10), (1, 15)):
        kept = checkpoint(tmp_path / "stage")
        kept.load()
        assert kept.spent == before
        now[0] += seconds
        kept.save({"step": 1})
        now[0] += 100  # what was done after the last save is done again


def test_a_file_that_says_no_seconds_is_loaded(tmp_path: Path) -> None:
    torch.save({"identity": {}, "state": {"step": 1}}, tmp_path / "stage")
    kept = checkpoint(tmp_path / "stage")
    assert kept.load() == {"step": 1}
    assert kept.spent == 0


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = checkpoint(tmp_path / "stage")
    kept.save({"step": 1})

    def full(_: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"stage.*No space left"):
        kept.save({"step": 2})
    assert kept.load() == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]


def damaged_files() -> list[bytes]:
    buffer = io.BytesIO()
    torch.save(state(), buffer)
    whole, generator = buffer.getvalue(), random.Random(0)
    noise = [generator.randbytes(length) for length in (1, 7, 50, 500) for _ in range(10)]
    return [b"", b"hello", b"{}\n", whole[: len(whole) // 2], whole[:-1], whole[:30], *noise]


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "stage"
    for content in damaged_files():
        path.write_bytes(content)
        with pytest.raises(CompensationError, match=r"stage' is not a complete checkpoint\. Delete it"):
            checkpoint(path).load()


def test_no_bit_of_a_checkpoint_changes_unnoticed(tmp_path: Path) -> None:
    path, generator = tmp_path / "stage", random.Random(0)
    saved = {"step": 3, "tensors": {"a": torch.arange(512.0)}}
    checkpoint(path).save(saved)
    whole = path.read_bytes()
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            loaded = checkpoint(path).load()
        except CompensationError:
            continue
        assert loaded is not None  # the bit was in what an archive says about its files, such as their dates
        assert loaded["step"] == 3
        assert torch.equal(loaded["tensors"]["a"], saved["tensors"]["a"])


OTHERS: list[Any] = [
    [1, 2],
    "text",
    torch.ones(2),
    {},
    {"step": 3},
    {"identity": {}, "state": {}, "more": 1},
    {"identity": [], "state": {}},
    {"identity": {"other settings": 3}, "state": {}},
]


@pytest.mark.parametrize("content", OTHERS, ids=str)
def test_a_file_of_another_content_is_named_with_what_to_do(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "stage")
    kept = Checkpoint(tmp_path / "stage", Accelerator(), {"other settings": {"seed": "0"}})
    with pytest.raises(CompensationError, match=r"stage' is not a complete checkpoint\. Delete it"):
        kept.load()


MADE_FROM = {"another model": {"weights": "a"}, "other settings": {"seed": "0"}}


def test_checkpoints_are_named_after_what_they_are_made_from(tmp_path: Path) -> None:
    def name(stage: str = "distill", **changes: dict[str, str]) -> str:
        path = Checkpoint.beside(tmp_path / "file", stage, {**MADE_FROM, **changes}, Accelerator()).path
        assert path is not None
        assert path.parent == tmp_path
        return path.name

    assert name().startswith("file.distill-")
    assert name() == name()
    assert len({name(), name("residual"), name(plan={"rank": "1"}), name(**{"other settings": {"seed": "1"}})}) == 4


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"another model": {"weights": "b"}}, "another model (weights a, now b)"),
        ({"other settings": {"seed": "1"}}, "other settings (seed 0, now 1)"),
    ],
)
def test_a_renamed_checkpoint_of_something_else_is_refused(
    changes: dict[str, dict[str, str]], told: str, tmp_path: Path
) -> None:
    ours = Checkpoint.beside(tmp_path / "file", "distill", MADE_FROM, Accelerator())
    theirs = Checkpoint.beside(tmp_path / "file", "distill", {**MADE_FROM, **changes}, Accelerator())
    assert ours.path is not None
    assert theirs.path is not None
    ours.save({"step": 1})
    ours.path.rename(theirs.path)
    with pytest.raises(CompensationError, match=re.escape(f"was made with {told}. Delete it")):
        theirs.load()


def test_a_checkpoint_of_another_stage_or_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Checkpoint.beside(tmp_path / "file", "distill", MADE_FROM, Accelerator())
    theirs = Checkpoint.beside(tmp_path / "file", "residual", MADE_FROM, Accelerator())
    assert ours.path is not None
    assert theirs.path is not None
    ours.save({"step": 1})
    shutil.copy(ours.path, theirs.path)
    with pytest.raises(CompensationError, match=r"another stage \(name distill, now residual\)"):
        theirs.load()
    monkeypatch.setattr(identity, "__version__", "99.0")
    later = Checkpoint.beside(tmp_path / "file", "distill", MADE_FROM, Accelerator())
    assert later.path == ours.path
    with pytest.raises(CompensationError, match=r"another version of this package \(version .*, now 99\.0\)"):
        later.load()


def test_a_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "stage").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CompensationError, match="complete checkpoint"):
        checkpoint(tmp_path / "stage").load()
    torch.save(Evil(), tmp_path / "stage")
    with pytest.raises(CompensationError, match="complete checkpoint"):
        checkpoint(tmp_path / "stage").load()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", [".out.calibration.safetensors", "x" * 240])
def test_checkpoints_of_all_settings_are_removed_and_nothing_else(name: str, tmp_path: Path) -> None:
    path, accelerator = tmp_path / name, Accelerator(cpu=True)
    path.touch()
    for seed in ("0", "1"):
        kept = Checkpoint.beside(path, "distill", {"other settings": {"seed": seed}}, accelerator)
        kept.save({"step": 1})
        assert kept.path is not None
        hidden_beside(kept.path, ".1-2.part").touch()
    assert len(list(tmp_path.iterdir())) == 5
    others = {tmp_path / other for other in (".out.calibration.safetensors.mine", ".out2.calibration.safetensors")}
    for other in others:
        other.touch()
    remove_checkpoints(path)
    assert set(tmp_path.iterdir()) == others
