"""Merged tokens as part of a plan: which schedules there are, what each was measured to lose, and what it leaves to do.

Merging late loses least: tokens that later blocks read are alike, and nothing after the last block tells them apart.
Merging early saves most, because all later blocks have fewer tokens. Where that balances is measured.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ..architectures.layers import LayerInfo
from ..architectures.merging import merging_blocks, patches_of, why_not_merge
from ..architectures.subject import Subject
from ..config import CompressionConfig
from ..evaluation.reference import Reference
from ..model.assembly import Tokens
from ..profiling.operations import macs_of_operation, without_tokens
from ..runtime.run import Run
from ..statistics.statistics import Merging
from .building import merged_model
from .groups.base import Choice

STARTS = (0.25, 0.5, 0.75)
"""Where in the stack of blocks merging may begin, as a share of them."""

TOTALS = (0.15, 0.3, 0.45, 0.6, 0.75)
"""Shares of the patch tokens that may be merged by the end."""

WORST_LOSS = 0.1
"""Nats from which on more merging is not measured; plans of any use lose less."""


@dataclass(frozen=True)
class Merged:
    """Tokens of each block that the blocks before it have merged, of a schedule.

    Attributes:
        tokens: block's module name → how many it merges at its end.
        loss: measured, nats per image.
        before: block's module name → how many are gone when it begins.
    """

    tokens: Tokens
    loss: float
    before: Mapping[str, int]

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: Tokens, loss: float) -> "Merged":
        before, gone = {}, 0
        for name in merging_blocks(model):
            before[name] = gone
            gone += tokens.get(name, 0)
            last = name
        if tokens:
            stack, _, place = last.rpartition(".")
            before[f"{stack}.{int(place) + 1}"] = gone
        return cls(tokens, loss, before)

    def gone(self, layer: LayerInfo) -> int:
        """Tokens that a layer does not see."""
        return self.before.get(layer.block_name, 0)


NOTHING_MERGED = Merged({}, 0.0, {})


def wants_merging(subject: Subject, config: CompressionConfig) -> bool:
    """Whether tokens are worth measuring: merged ones lower no number of parameters."""
    by_cost = config.max_macs is not None or config.times
    return config.tokens == "auto" and by_cost and why_not_merge(subject.model, subject.reading) is None


def schedules(model: PreTrainedModel) -> list[list[Tokens]]:
    """From each start, schedules of more and more merged tokens, evenly over the blocks from there on."""
    blocks = merging_blocks(model)
    patches = patches_of(model, blocks[0]) if blocks else None
    if patches is None or len({name.rpartition(".")[0] for name in blocks}) > 1:
        return []
    found = []
    for start in dict.fromkeys(int(share * (len(blocks) + 1)) for share in STARTS):
        own = blocks[start:]
        even = [_evenly(own, round(total * patches)) for total in TOTALS]
        found.append([tokens for tokens in even if tokens and _fits(tokens, patches)])
    return found


def _evenly(blocks: Sequence[str], total: int) -> Tokens:
    ends = [total * place // len(blocks) for place in range(len(blocks) + 1)]
    counts = [after - before for before, after in itertools.pairwise(ends)]
    return {name: count for name, count in zip(blocks, counts, strict=True) if count}


def _fits(tokens: Tokens, patches: int) -> bool:
    """Whether each block merges at most half of the patches that are left."""
    for count in tokens.values():
        if count > patches // 2:
            return False
        patches -= count
    return True


def measure_merging(reference: Reference, run: Run) -> list[Merging]:
    """What schedules lose on the dense model's weights; from each start until they lose too much."""
    found: list[Merging] = []
    model = reference.subject.model
    ladders = schedules(model)
    with run.bar("merging", "schedules", total=sum(map(len, ladders))) as bar:
        for ladder in ladders:
            for tokens in ladder:
                loss = reference.loss_of(merged_model(model, tokens))
                found.append(Merging(tokens, loss))
                bar.update()
                if loss > WORST_LOSS:
                    break
    return found


def with_fewer_tokens(choice: Choice, merged: int) -> Choice:
    """The same choice in a block that so many fewer tokens pass through."""
    if not merged:
        return choice
    operations = tuple(without_tokens(operation, merged) for operation in choice.operations)
    spared = sum(map(macs_of_operation, choice.operations)) - sum(map(macs_of_operation, operations))
    return replace(choice, macs=choice.macs - spared, operations=operations)
