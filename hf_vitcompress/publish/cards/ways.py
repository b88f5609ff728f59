"""In which ways a model was compressed, as its plan says and not its recipe, which leaves the plan a choice."""

from ...planning.groups.removal import is_removed
from ...planning.plan import GroupReport
from ...report.report import CompressionReport
from ...report.tokens import merged_by_block

MLP = ("mlp", "gate", "fc1", "fc2")
"""Roles of what is not attention."""


def ways(report: CompressionReport) -> list[str]:
    """What became of attention, of feed-forward layers and of tokens, in a few words each."""
    left = [part for part in report.parts if part.shapes and not is_removed(part.shapes)]
    attention = [part for part in left if part.role not in MLP]
    how = {
        "queries and keys share a projection": any("qk_rank" in _kinds(part) for part in attention),
        "values lose directions": any(part.role == "vo" and _narrowed(part) for part in attention),
        "heads are pruned": any(part.role != "vo" and _narrowed(part) for part in attention),
        "projections of attention are low-rank": any("rank" in _kinds(part) for part in attention),
    }
    found = [", ".join(way for way, applies in how.items() if applies), _feed_forward(left), removed_modules(report)]
    return [way for way in [*found, "similar tokens are merged" if report.patch_tokens else ""] if way]


def removed_modules(report: CompressionReport) -> str:
    """How many attentions and feed-forwards are removed; empty where none is."""
    gone = {(part.role in MLP, part.block) for part in report.parts if is_removed(part.shapes)}
    counts = {"attention": sum(not mlp for mlp, _ in gone), "feed-forward": sum(mlp for mlp, _ in gone)}
    named = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count]
    return f"{' and '.join(named)} {'is' if len(gone) == 1 else 'are'} removed" if gone else ""


def parts(report: CompressionReport) -> list[str]:
    """How many parts of the blocks were compressed, what stands for removed modules, and which blocks merge tokens."""
    changed, total = sum(bool(part.shapes) for part in report.parts), len(report.parts)
    left = f"{changed} of {total} parts of the blocks were compressed, the others are as they were."
    sentences = [left if changed else f"All {total} parts of the blocks are as they were."]
    if gone := removed_modules(report):
        mean = "the mean of its output" if report.settings.get("correct_bias", True) else "its bias"
        whose = "its place" if gone.endswith("is removed") else "the place of each"
        sentences.append(f"{gone}: in {whose} {mean} is left, the same for every token.")
    if report.patch_tokens is not None:
        before, after = report.patch_tokens
        sentences.append(
            f"At their end some blocks merge the patch tokens that are most alike: {before:,} enter the first block "
            f"and {after:,} the last one, which gives every patch its place again. Outputs have the dense shape; "
            f"hidden states between the blocks have fewer tokens. {merged_by_block(report.tokens)}".strip()
        )
    return sentences


def dense_form(report: CompressionReport) -> str:
    """What `to_dense` does."""
    if any({"rank", "qk_rank"} & _kinds(part) for part in report.parts):
        return "multiplies its factors out to the dense class"
    return "gives a model of the dense class"


def _feed_forward(left: list[GroupReport]) -> str:
    own = [part for part in left if part.role in MLP]
    words = {
        (True, True): "feed-forward layers are pruned, low-rank, or both",
        (True, False): "neurons of feed-forward layers are pruned",
        (False, True): "feed-forward layers are low-rank",
        (False, False): "",
    }
    return words[any(map(_narrowed, own)), any("rank" in _kinds(part) for part in own)]


def _kinds(part: GroupReport) -> set[str]:
    return {kind for shape in part.shapes.values() for kind in shape}


def _narrowed(part: GroupReport) -> bool:
    return bool(_kinds(part) & {"in_features", "out_features"})
