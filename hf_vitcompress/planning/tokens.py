"""Merged tokens as part of a plan: which schedules there are, what each was measured to lose, and what it leaves to do.

Merging late loses least: tokens that later blocks read are alike, and nothing after the last block tells them apart.
Merging early saves most, because all later blocks have fewer tokens. Where that balances is measured.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..architectures.layers import LayerInfo
from ..architectures.merging import merging_blocks, patches_of, why_not_merge
from ..architectures.subject import Subject
from ..config import CompressionConfig
from ..evaluation.reference import Reference
from ..model.assembly import Tokens
from ..profiling.operations import Merge, Operation, without_tokens
from ..runtime.run import Run
from ..statistics.statistics import Merging
from .building import merged_model
from .groups.base import Choice

STARTS, STRIDES = (0.25, 0.5), (1, 3)
"""Where in the stack of blocks merging may begin, as a share of them, and every how many blocks it happens.

The more often, the less is lost; and the more time merging itself takes."""

TOTALS = (0.15, 0.3, 0.45, 0.6)
"""Shares of the patch tokens that may be merged by the end."""

MEASURED_IMAGES = 128
"""Images that losses of merged tokens are measured on, at most."""

WORST_LOSS = 0.03
"""Nats from which on more merging is not measured; plans of any use lose less."""


@dataclass(frozen=True)
class Merged:
    """Tokens of each block that the blocks before it have merged, of a schedule.

    Attributes:
        tokens: block's module name → how many it merges at its end.
        loss: measured, nats per image.
        before: block's module name → how many are gone when it begins.
        own: what merging itself costs.
    """

    tokens: Tokens
    loss: float
    before: Mapping[str, int]
    own: Choice

    @classmethod
    def of(cls, tokens: Tokens, loss: float, rows: Mapping[str, int], width: int) -> "Merged":
        """Of a schedule.

        Args:
            rows: block's module name → tokens of an image that it reads in the dense model; all blocks, in their order.
            width: features of a token.
        """
        before, gone = {}, 0
        operations: list[Operation] = []
        for name, count in rows.items():
            before[name] = gone
            if own := tokens.get(name, 0):
                operations.append(Merge(count - gone, width))
            gone += own
        return cls(tokens, loss, before, Choice.of(0, loss, {}, operations))

    def gone(self, layer: LayerInfo) -> int:
        """Tokens that a layer does not see."""
        return self.before.get(layer.block_name, 0)


NOTHING_MERGED = Merged({}, 0.0, {}, Choice.of(0, 0.0, {}, ()))


def wants_merging(subject: Subject, config: CompressionConfig) -> bool:
    """Whether tokens are worth measuring: merged ones lower no number of parameters."""
    return (config.max_macs is not None or config.times) and merges_tokens(subject, config)


def merges_tokens(subject: Subject, config: CompressionConfig) -> bool:
    """Whether plans may merge tokens at all."""
    return config.tokens == "auto" and why_not_merge(subject.model, subject.reading) is None


def schedules(model: PreTrainedModel) -> list[list[Tokens]]:
    """Of each start and stride, schedules of more and more merged tokens, evenly over the blocks that merge."""
    blocks = merging_blocks(model)
    patches = patches_of(model, blocks[0]) if blocks else None
    if patches is None or len({name.rpartition(".")[0] for name in blocks}) > 1:
        return []
    starts = dict.fromkeys(int(share * (len(blocks) + 1)) for share in STARTS)
    ladders = []
    for start, stride in itertools.product(starts, STRIDES):
        own = blocks[start::stride]
        even = [_evenly(own, round(total * patches)) for total in TOTALS] if own else []
        ladders.append([tokens for tokens in even if tokens and _fits(tokens, patches)])
    return ladders


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
    if len(reference.source) > MEASURED_IMAGES:
        fewer = reference.source.sample(MEASURED_IMAGES, run.config.seed)
        reference = Reference.of(reference.subject, fewer, run)
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
    operations = (without_tokens(operation, merged) for operation in choice.operations)
    return Choice.of(choice.parameters, choice.error, choice.shapes, operations)
