"""Attention whose heads together are narrower than the tokens that they read, or wider."""

from dataclasses import replace

import pytest
import torch
from transformers import ViTForImageClassification

from hf_vitcompress import CompressionConfig, ViTCompressor
from hf_vitcompress.metrics import METRICS
from support.models import seeded, tiny_config

IMAGES = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore::hf_vitcompress.errors.BudgetWarning")  # ranks of a tiny model are coarse
@pytest.mark.parametrize("head_dim", [4, 16])
@pytest.mark.parametrize("metric", METRICS)
def test_statistics_serve_queries_and_keys_together_and_apart(metric: str, head_dim: int) -> None:
    dense = seeded(ViTForImageClassification, tiny_config(head_dim=head_dim))
    budget = dense.num_parameters() // 2
    config = CompressionConfig(max_params=budget, metric=metric, attention="joint", batch_size=8)
    compressor = ViTCompressor(config, progress=False)
    small = compressor.compress(dense, IMAGES)
    assert small(IMAGES).logits.shape == (24, 5)
    apart = ViTCompressor(replace(config, attention="low_rank"), progress=False)
    assert apart.compress(dense, statistics=compressor.statistics).num_parameters() <= budget


def test_the_predicted_error_is_that_of_the_factors() -> None:
    dense = seeded(ViTForImageClassification, tiny_config(head_dim=4))
    config = CompressionConfig(keep_ratio=0.5, attention="joint", batch_size=8, damping=1e-9)
    compressor = ViTCompressor(config, progress=False)
    statistics = compressor.calibrate(dense, IMAGES)
    group = next(own for own in compressor.planner(dense, statistics).groups if own.role == "qk")
    shapes = {group.name: {"qk_rank": 6}}
    tensors, error = group.tensors(shapes), 0.0
    for own in group.moments:
        change = own.weight - tensors[f"{own.layer.name}.weight"] @ tensors[f"{group.name}.qk_down.weight"]
        assert own.linear.out_features < own.linear.in_features
        error += 0.5 * float(torch.trace(own.output_side @ change @ own.input_side @ change.T))
    assert error == pytest.approx(group.choice(shapes).error, rel=1e-3)
