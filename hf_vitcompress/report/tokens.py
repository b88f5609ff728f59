"""What reports say of merged tokens."""

from collections.abc import Mapping

from ..architectures.merging import merging_blocks, tokens_left
from ..planning.plan import CompressionPlan
from ..planning.planner import Planner
from ..tokens_factored import prefix_tokens
from .tables import common_prefix


def patch_tokens(planner: Planner, plan: CompressionPlan) -> tuple[int, int] | None:
    """Of one image such as it was calibrated on, in the first and in the last block; `None` where none is merged."""
    if not any(plan.tokens.values()):
        return None
    first = planner.groups[0]
    prefix = prefix_tokens(first.model.get_submodule(first.layers[0].block_name)) or 0
    patches = first.positions - prefix
    return patches, tokens_left(patches, (plan.tokens.get(name, 0) for name in merging_blocks(first.model)))


def merged_by_block(tokens: Mapping[str, int]) -> str:
    """A sentence that says how many tokens each block merges; empty where none merges any."""
    counts = {name: count for name, count in tokens.items() if count}
    prefix = common_prefix(list(counts))
    whose = f" of `{prefix.removesuffix('.')}`" if prefix else ""
    listed = ", ".join(f"{count} in {name.removeprefix(prefix)}" for name, count in counts.items())
    return f"Tokens merged at the end of blocks{whose}: {listed}." if counts else ""
