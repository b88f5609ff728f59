"""Exporters are quiet in the thread that exports, and leave what is said elsewhere alone."""

import threading
import warnings

import pytest

from hf_vitcompress.deploy.export_formats import quiet


def test_another_thread_is_heard_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("of the exporter")
        other = threading.Thread(target=lambda: print("of another thread"))
        other.start()
        other.join()
    print("afterwards")
    assert capsys.readouterr().out.split("\n") == ["of another thread", "afterwards", ""]


def test_filters_are_those_of_before_when_two_threads_export_at_once() -> None:
    before, first_is_in = list(warnings.filters), threading.Event()

    def first() -> None:
        with quiet():
            first_is_in.set()
            second.join(0.05)  # it would come in and out of its block here, or stay in longer

    def run_second() -> None:
        first_is_in.wait()
        with quiet():
            pass

    second, one = threading.Thread(target=run_second), threading.Thread(target=first)
    second.start()
    one.start()
    for thread in (one, second):
        thread.join()
    assert list(warnings.filters) == before
