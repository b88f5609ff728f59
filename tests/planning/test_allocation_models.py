"""Budgets through the whole compressor."""

from typing import Any

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress.compressor import ViTCompressor
from hf_vitcompress.config import CompressionConfig
from hf_vitcompress.errors import BudgetError
from hf_vitcompress.evaluation.costs import count_costs
from hf_vitcompress.planning.allocation import KEEP_TOLERANCE
from hf_vitcompress.statistics.statistics import Statistics
from support.students import METHODS
from support.tables import compressor

every_method = pytest.mark.parametrize("method", METHODS)


@every_method
@pytest.mark.parametrize("ratio", [0.35, 0.5, 0.77, 0.95])
def test_compressed_model_keeps_the_ratio(
    vit: PreTrainedModel, statistics: Statistics, ratio: float, method: str
) -> None:
    worker = compressor(keep_ratio=ratio, **METHODS[method])
    small = worker.compress(vit, statistics=statistics)
    kept = count_costs(small).parameters / count_costs(vit).parameters
    assert ratio * (1 - KEEP_TOLERANCE) <= kept <= ratio
    assert worker.plan(vit, statistics).keep_ratio == pytest.approx(kept)


@pytest.mark.parametrize("ratio", [0.9, 0.95, 0.97, 0.99])
def test_pruning_by_the_same_share_reaches_ratios_near_one(vit: PreTrainedModel, pixels: Tensor, ratio: float) -> None:
    settings = {"criterion": "magnitude", "compensation": "none", "measuring_images": 0, "precision": "float32"}
    config = CompressionConfig.preset("vtp", keep_ratio=ratio, rank_multiple=1, **settings)
    small = ViTCompressor(config, progress=False).compress(vit, pixels)
    assert ratio * (1 - KEEP_TOLERANCE) <= count_costs(small).parameters / count_costs(vit).parameters <= ratio


@every_method
def test_keep_ratio_of_one_keeps_every_layer_dense(vit: PreTrainedModel, statistics: Statistics, method: str) -> None:
    plan = compressor(keep_ratio=1.0, **METHODS[method]).plan(vit, statistics)
    assert plan.layers == {}
    assert plan.keep_ratio == 1.0


def test_max_params_is_kept_to(vit: PreTrainedModel, statistics: Statistics) -> None:
    small = compressor(max_params=15_000).compress(vit, statistics=statistics)
    assert 15_000 - 128 < count_costs(small).parameters <= 15_000


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_max_macs_is_kept_to(vit: PreTrainedModel, statistics: Statistics, share: float) -> None:
    limit = int(share * count_costs(vit).macs)
    small = compressor(max_macs=limit).compress(vit, statistics=statistics)
    assert limit - 17 * 128 < count_costs(small).macs <= limit


@pytest.mark.parametrize("bound", [{"keep_ratio": 0.01}, {"max_params": 10}, {"max_macs": 10}])
def test_impossible_bound_is_refused_with_the_lowest_ratio(
    vit: PreTrainedModel, statistics: Statistics, bound: dict[str, Any]
) -> None:
    with pytest.raises(BudgetError, match=r"keep ratio 0\.\d{4} of"):
        compressor(**bound).plan(vit, statistics)


def test_skipped_layers_are_never_planned(vit: PreTrainedModel, statistics: Statistics) -> None:
    plan = compressor(keep_ratio=0.8, skip_modules=["fc1", "layers.0.*"]).plan(vit, statistics)
    assert plan.layers
    assert all(name.startswith("vit.layers.1.") and not name.endswith("fc1") for name in plan.layers)
