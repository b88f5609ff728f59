"""Fixtures of the tests of compensation."""

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from support.compensated import IMAGES
from support.students import lively, random_images


@pytest.fixture
def dense() -> PreTrainedModel:
    return lively()


@pytest.fixture
def images() -> Tensor:
    return random_images(IMAGES)
