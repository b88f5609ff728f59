"""Named recipes: this package's own, and those of other people's methods to compare with."""

from typing import Any

OWN_PRESETS = {
    "default": "all settings as they are",
    "low_rank": "every layer is factored by itself; nothing is pruned or shared",
}
"""This package's own methods, each with what it does."""

BASELINES = {
    "svd": "truncated SVD of the weights, the same share for all layers",
    "fwsvd": "Hsu et al., arXiv 2207.00112: rows weighted by gradient power",
    "svd_llm": "Wang et al., arXiv 2403.07378: truncation-aware whitening",
    "azizi2024": "Azizi et al., arXiv 2402.06004: activation-aware, mixed ranks by energy, residual tensors",
    "vtp": "Zhu et al., arXiv 2104.08500: neurons and heads pruned by learned scores, then fine-tuned",
    "kumar2022": "Kumar, arXiv 2203.13444: neurons pruned by learned scores, SVD of attention, then fine-tuned",
}
"""Other people's methods, each with its source."""

# The further a start is from the dense model, the larger the steps that train it best.
_LOW_RANK = {"attention": "low_rank", "mlp": "low_rank", "tokens": "none", "learning_rate": 3e-5}
_GATED = {
    "metric": "weight",
    "mlp": "prune",
    "tokens": "none",
    "criterion": "gates",
    "repair": False,
    "allocation": "uniform",
    "correct_bias": False,
    "compensation": "distill",
    "optimizer": "adamw",
    "learning_rate": 3e-5,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "low_rank": _LOW_RANK,
    "svd": {**_LOW_RANK, "metric": "weight", "allocation": "uniform", "correct_bias": False},
    "fwsvd": {**_LOW_RANK, "metric": "row_fisher", "allocation": "uniform", "correct_bias": False},
    "svd_llm": {**_LOW_RANK, "metric": "activation", "allocation": "uniform", "correct_bias": False},
    "azizi2024": {
        **_LOW_RANK,
        "metric": "activation",
        "allocation": "greedy",
        "correct_bias": False,
        "compensation": "residual",
        "residual_share": 0.25,
    },
    "vtp": {**_GATED, "attention": "prune"},
    "kumar2022": {**_GATED, "attention": "low_rank"},
}
"""The settings of each preset that are not the default ones."""
