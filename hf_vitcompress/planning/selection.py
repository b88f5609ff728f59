"""How heads and neurons are chosen: by which scores, and under which name measured losses are kept."""

import hashlib
from collections.abc import Mapping

from torch import Tensor

from ..config import CompressionConfig
from ..errors import ConfigError


def learned_scores(importance: Mapping[str, Tensor], name: str, count: int) -> Tensor:
    """Learned scores of what flows into the layer of that name, (count,).

    Raises:
        ConfigError: there are none, not as many, or not finite ones.
    """
    if name not in importance:
        raise ConfigError(
            f'criterion="gates" needs learned scores of what flows into {name!r}: let ImportanceGateCallback learn '
            'them, pass importance=…, or use criterion="fisher".'
        )
    scores = importance[name].detach().abs().double().cpu()
    if scores.shape != (count,):
        raise ConfigError(f"There are {tuple(scores.shape)} scores of what flows into {name!r}; it has {count}.")
    if not bool(scores.isfinite().all()):
        raise ConfigError(f"The scores of what flows into {name!r} hold NaN or infinite values; learn them again.")
    return scores


def selection_method(config: CompressionConfig, importance: Mapping[str, Tensor] | None) -> str:
    """`config.method`, and where learned scores select also which ones: with others, the same shapes keep others."""
    if config.criterion != "gates" or not importance:
        return config.method
    digest = hashlib.sha256()
    for name, scores in sorted(importance.items()):
        digest.update(name.encode() + scores.detach().float().cpu().contiguous().numpy().tobytes())
    return f"{config.method}/{digest.hexdigest()[:12]}"
