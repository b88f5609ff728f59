"""Fixtures of the tests of compressor."""

from typing import Any

import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel

from hf_vitcompress import ViTCompressor
from support.digits import CALIBRATION, new
from support.models import DIGITS


@pytest.fixture(scope="session")
def digits() -> PreTrainedModel:
    return AutoModelForImageClassification.from_pretrained(DIGITS / "model").eval()


@pytest.fixture(scope="session")
def digit_processor() -> Any:
    return AutoImageProcessor.from_pretrained(DIGITS / "model")


@pytest.fixture(scope="session")
def compressor() -> ViTCompressor:
    return new()


@pytest.fixture(scope="session")
def small(compressor: ViTCompressor, digits: PreTrainedModel) -> PreTrainedModel:
    return compressor.compress(digits, CALIBRATION)
