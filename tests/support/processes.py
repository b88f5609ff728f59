"""Processes of their own, which see the tests' shared code and the package of this checkout.

`started` forks them from a server that has imported the package once: a new interpreter takes seconds to do that.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from support.models import REPOSITORY

SECONDS = 300
"""A process that takes longer hangs."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["support.sharing", "support.sharing_trainings", "support.gate_trainings"])


class Ended(NamedTuple):
    """A process after its end; the code is negative where a signal ended it."""

    code: int | None
    err: str


def environment(**more: object) -> dict[str, str]:
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120", "PYTHONPATH": path}
    return {**os.environ, **own, **{name: str(value) for name, value in more.items()}}


def together(work: Callable[..., object], *arguments: object, processes: int) -> list[Ended]:
    """Do the same in several processes that find each other, with what any launcher sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "WORLD_SIZE": processes}
    ranks = [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    return _ends(work, arguments, [{name: str(value) for name, value in rank.items()} for rank in ranks])


def launched(work: Callable[..., object], *arguments: object, processes: int) -> list[Ended]:
    """As `together`, but torch's own launcher starts them, which torchrun is the command of.

    Raises:
        ChildFailedError: a process has failed.
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with tempfile.TemporaryDirectory() as folder, handlers_kept(), mock.patch.dict(os.environ, environment()):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="tests",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="forkserver",
        )
        elastic_launch(config, _launched)(work, arguments, folder)
        return [Ended(0, Path(folder, str(rank)).read_text(encoding="utf-8")) for rank in range(processes)]


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """What signals do afterwards is what they did before."""
    kept = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def alone(work: Callable[..., object], *arguments: object) -> Ended:
    """Do it in a process of its own.

    Args:
        work: a function of a module that can be imported by its name.
    """
    return _ends(work, arguments, [{}])[0]


def _ends(work: Callable[..., object], arguments: tuple[object, ...], each: Iterable[dict[str, str]]) -> list[Ended]:
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, environment()):
        running = []
        for number, variables in enumerate(each):
            file = f"{folder}/{number}"
            running.append((_FORKS.Process(target=_run, args=(work, arguments, variables, file)), file))
            running[-1][0].start()
        ends = []
        for process, file in running:
            process.join(SECONDS)
            process.kill()
            process.join()
            with open(file, encoding="utf-8") as err:
                ends.append(Ended(process.exitcode, err.read()))
            process.close()
    return ends


def _launched(work: Callable[..., object], arguments: tuple[object, ...], folder: str) -> None:
    own = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")}
    _run(work, arguments, {**environment(), **own}, f"{folder}/{own['RANK']}")


def _run(work: Callable[..., object], arguments: tuple[object, ...], variables: dict[str, str], errors: str) -> None:
    os.environ.update(variables)
    with open(errors, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(SECONDS / 2, exit=True)
    work(*arguments)
