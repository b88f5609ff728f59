"""What a stage writes down and reads again."""

import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_vitcompress.errors import CompensationError, OutputError
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
