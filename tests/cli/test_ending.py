"""How a command ends that does not end well: one line, an exit code that says why, and nothing lost."""

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_vitcompress.compressor
from hf_vitcompress import CompressionConfig, cli, starting
from hf_vitcompress.cli import ending
from hf_vitcompress.errors import CalibrationWarning, ConfigWarning, DataError
from hf_vitcompress.evaluation import evaluation, latency
from support.models import DIGITS, REPOSITORY
from support.terminal import Run, one_line, running_commands, without_bars  # noqa: F401  (the fixture "run")

MODEL = str(DIGITS / "model")
CALIBRATION = str(DIGITS / "calibration.parquet")
TEST = str(DIGITS / "test.parquet")
QUICK = ["--num-images", "32", "--measuring-images", "0", "--rank-multiple", "2", "--precision", "float32", "-q"]
NO_CPU_MEMORY = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def compress(output: Path) -> list[str]:
    return ["compress", MODEL, "--data", CALIBRATION, "--output", str(output), *QUICK]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let calibration raise an error."""

    def fail_with(error: BaseException) -> None:
        def calibrate(*_: Any) -> None:
            raise error

        monkeypatch.setattr(hf_vitcompress.compressor, "calibrate", calibrate)

    return fail_with


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "memory is full: CUDA.*--batch-size"),
        (RuntimeError(NO_CPU_MEMORY), "memory is full.*--batch-size"),
        (MemoryError(), "memory is full: MemoryError.*--batch-size"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory is full"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), "No space left on device: 'f'. Free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "Permission denied: 'f'"),
        (ModuleNotFoundError("No module named 'onnx.x'", name="onnx.x"), "onnx is missing.*Install it"),
        (RuntimeError("first\n\n second line."), "Unexpected RuntimeError: first second line. This is.*--debug"),
        (KeyError("x"), "Unexpected KeyError: 'x'.*--debug"),
        (AssertionError(), "Unexpected AssertionError: AssertionError"),
        (RecursionError("x" * 9999), "Unexpected RecursionError: x{297}…"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_libraries_raise_ends_in_one_line(
    error: Exception, message: str, run: Run, failing: Callable[[BaseException], None], tmp_path: Path
) -> None:
    failing(error)
    done = run(*compress(tmp_path / "out"))
    assert done.code == 1
    assert re.search(message, one_line(without_bars(done.err)))


@pytest.mark.parametrize("place", ["before", "after", "variable"])
def test_debug_shows_the_traceback(
    place: str, run: Run, failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(KeyError("hidden"))
    command = compress(tmp_path / "out")
    if place == "variable":
        monkeypatch.setenv(starting.DEBUG_VARIABLE, "1")
    done = run(*(["--debug"] if place == "before" else []), *command, *(["--debug"] if place == "after" else []))
    assert done.code == 1
    assert "Traceback" in done.err
    assert "error: Unexpected KeyError: 'hidden'" in done.err


def test_debug_shows_where_our_own_errors_come_from(run: Run) -> None:
    done = run("evaluate", MODEL, "--data", "./absent", "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert "error: There is no folder or file './absent'" in done.err


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_commands_without_a_checkpoint_promise_none(
    raised: BaseException, code: int, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("hf_vitcompress.evaluation.comparison.Candidate.load", interrupted)
    done = run("evaluate", MODEL, "--data", TEST, "-q")
    assert (done.code, done.err) == (code, "interrupted\n")


def test_sigterm_ends_a_command_as_ctrl_c_does(
    run: Run, failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(hf_vitcompress.compressor, "calibrate", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    done = run(*compress(tmp_path / "out"))
    assert done.code == 143
    assert "interrupted before the first checkpoint" in done.err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def heeding() -> Iterator[None]:
    """Ctrl-C counts, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Swallowing:
    """Python ignores what is raised when it goes."""

    def __init__(self, raised: BaseException) -> None:
        self.raised = raised

    def __del__(self) -> None:
        raise self.raised


def test_an_interruption_that_an_import_swallows_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes: list[int] = []
    others: list[type[BaseException]] = []
    monkeypatch.setenv(starting.DEBUG_VARIABLE, "1")
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", lambda swallowed: others.append(swallowed.exc_type))
    starting.start_command_line()
    Swallowing(ValueError())
    assert (others, codes) == ([ValueError], [])
    Swallowing(KeyboardInterrupt())
    assert (others, codes) == ([ValueError], [130])
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.usefixtures("heeding")
@pytest.mark.parametrize(("raised", "ends"), [(KeyboardInterrupt(), KeyboardInterrupt), (SystemExit(143), SystemExit)])
def test_a_signal_that_is_swallowed_comes_again(raised: BaseException, ends: type[BaseException]) -> None:
    def command() -> None:
        Swallowing(raised)
        time.sleep(5)

    before = sys.unraisablehook
    with pytest.raises(ends), ending.ended_by_sigterm(), ending.stopped_in_any_place():
        command()
    assert sys.unraisablehook is before


@pytest.mark.usefixtures("heeding")
def test_a_signal_that_comes_back_at_once_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it may come while the thread that sends it is still being started."""
    start, early = threading.Timer.start, iter([KeyboardInterrupt])

    def interrupted(timer: threading.Timer) -> None:
        for raised in early:
            raise raised
        start(timer)

    def command() -> None:
        Swallowing(KeyboardInterrupt())
        time.sleep(5)

    monkeypatch.setattr(threading.Timer, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), ending.stopped_in_any_place():
        command()


@pytest.mark.parametrize("started", [["-m", "hf_vitcompress"], ["vitcompress"]])
def test_an_interruption_while_importing_shows_no_traceback(started: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    (tmp_path / "vitcompress").write_text("from hf_vitcompress.cli import main\nmain()\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, *started, "quantize", "small", "--output", "int8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == "interrupted\n"


def test_programs_that_import_the_package_keep_their_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-c", "import hf_vitcompress"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "Traceback" in done.stderr


# ---- the terminal


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:  # which would raise again when it is closed
        monkeypatch.setattr(sys, "stdout", gone)
        print("a table")
        ending.flush_output()
        monkeypatch.undo()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_streams_that_are_closed_are_no_error(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, stream, None)
    ending.flush_output()
    ending.tell("unheard")
    monkeypatch.undo()


def test_a_table_can_be_shown_in_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    ending.take_any_text()
    print("2 × faster")
    ending.flush_output()
    assert written.getvalue() == b"2 ? faster\n"


def test_an_error_can_be_told_to_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["vitcompress", "evaluate", MODEL, "--data", "./modèle…"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert b"error: There is no folder or file './mod\\xe8le\\u2026'" in written.getvalue()


def test_warnings_of_the_package_are_their_sentence_alone() -> None:
    before = warnings.formatwarning
    with ending.warnings_on_one_line(debug=True):
        for ours in (ConfigWarning, CalibrationWarning):
            assert warnings.formatwarning("Few images.", ours, "file.py", 3) == "warning: Few images.\n"
        assert "file.py:3: UserWarning: theirs" in warnings.formatwarning("theirs", UserWarning, "file.py", 3)
    with ending.warnings_on_one_line(debug=False):
        assert warnings.formatwarning("theirs", UserWarning, "file.py", 3) == ""
    assert warnings.formatwarning is before


def test_one_of_several_processes_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    before = signal.getsignal(signal.SIGTERM)
    with ending.ended_by_sigterm():
        assert signal.getsignal(signal.SIGTERM) == before


# ---- judging


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("evaluate_model", DataError("The images went away."), "judging it failed: The images went away."),
        ("evaluate_model", RuntimeError(NO_CPU_MEMORY), "judging it failed: The memory is full"),
        ("measure_latency", ValueError("no clock"), "judging it failed: Unexpected ValueError: no clock"),
    ],
)
def test_a_result_is_saved_although_judging_it_fails(
    where: str, error: Exception, message: str, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(latency if where == "measure_latency" else evaluation, where, fail)
    done = run(*compress(tmp_path / "out"), *(["--latency"] if where == "measure_latency" else ["--test", TEST]))
    assert done.code == 1
    assert message in one_line(without_bars(done.err))
    assert str(tmp_path / "out") in done.err
    assert CompressionConfig.load(tmp_path / "out" / "compression_recipe.yaml").num_images == 32
    report = json.loads((tmp_path / "out" / "compression_report.json").read_text())
    assert (report["evaluation"], report["latency"]) == (None, [])
