"""Which process needs what the tests share: not the one that only deals them out, where its imports take seconds."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any Hugging Face import: no test needs a network


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") != "no":
        return
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.resume_global_capture()  # what libraries print when they are imported
    config.pluginmanager.import_plugin("support.fixtures")
    capture.suspend_global_capture()
    capture.read_global_capture()
