"""What reports say of merged tokens."""

from collections.abc import Mapping

from .tables import common_prefix


def merged_by_block(tokens: Mapping[str, int]) -> str:
    """A sentence that says how many tokens each block merges; empty where none merges any."""
    counts = {name: count for name, count in tokens.items() if count}
    prefix = common_prefix(list(counts))
    whose = f" of `{prefix.removesuffix('.')}`" if prefix else ""
    listed = ", ".join(f"{count} in {name.removeprefix(prefix)}" for name, count in counts.items())
    return f"Tokens merged at the end of blocks{whose}: {listed}." if counts else ""
