"""Fixtures of the tests of planning."""

import pytest
import torch
from transformers import ViTForImageClassification

from hf_vitcompress.statistics.statistics import Statistics
from support.models import seeded, tiny_config
from support.tables import compressor


@pytest.fixture(scope="session")
def statistics() -> Statistics:
    """Of the model that the fixture `vit` makes, for every method."""
    pixels = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return compressor().calibrate(seeded(ViTForImageClassification, tiny_config()), pixels)
