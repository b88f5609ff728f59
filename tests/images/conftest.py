"""Fixtures of the tests of images."""

import pytest
from PIL import Image


@pytest.fixture
def six(pictures: list[Image.Image]) -> list[Image.Image]:
    return pictures[:6]
