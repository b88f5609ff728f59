"""The inputs of a model's blocks, one block after the other, without running the model from the images for each.

`PairedBlockInputs` computes them from those of the block before where the model does so, too (see `block_flow`), and
elsewhere from the images again.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architectures.inputs import model_inputs
from ..architectures.running import passing
from ..architectures.subject import Subject
from ..errors import CompensationError
from ..images.images import Batch, ImageSource
from ..runtime.devices import autocast, resolve_precision
from ..runtime.distributed import gather_objects, local_work, own_share, sum_numbers
from ..runtime.hooks import Reached
from ..runtime.run import Run
from .block_calls import Call, Flow, observe_flow

CACHE_BYTES = 1_024_000_000
"""Memory of a process for the inputs of one block, those of both models together."""


class BlockInputs:
    """One model's inputs of one block, for all images of this process.

    Attributes:
        calls: a batch each.
    """

    def __init__(self, model: PreTrainedModel, precision: str) -> None:
        self.model, self.precision = model, precision
        self.calls: list[Call] = []

    @property
    def bytes(self) -> int:
        return sum(call.nbytes for call in self.calls)

    @property
    def images(self) -> int:
        return sum(len(call.hidden) for call in self.calls)

    def read(self, block: str, batch: Batch) -> None:
        """Add what the model passes to `block` for these images; nothing after it is computed.

        Raises:
            CompensationError: it passes nothing to it.
        """
        inputs = model_inputs(self.model, batch.pixel_values, batch.inputs)

        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.calls.append(Call.of(arguments, named, inputs.get("pixel_attention_mask")))
            raise Reached

        handle = self.model.get_submodule(block).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with (
                passing(self.model, batch.pixel_values),
                contextlib.suppress(Reached),
                autocast(self.model, self.precision),
            ):
                self.model(**inputs)
                raise CompensationError(
                    f"{type(self.model).__name__} does not use its block {block!r}, so that there is nothing to "
                    f'compensate it on: leave it dense (skip_modules=["{block}.*"]).'
                )
        finally:
            handle.remove()

    def run(self, block: nn.Module, index: int) -> Tensor:
        """The block's output (n, …, d) for one batch."""
        call = self.calls[index]
        with autocast(self.model, self.precision):
            return call.run(block)

    def advance(self, block: nn.Module) -> None:
        """From the inputs of `block` to those of the next one, which is chained to it."""
        for index, call in enumerate(self.calls):
            call.hidden = self.run(block, index)


class PairedBlockInputs:
    """The inputs of one block of two models of one architecture, on the same images: this process's share of them.

    Args:
        subjects: the first is the one whose flow is observed.
        blocks: module names, in the models' order.
        images: at most as many are used as the largest inputs of a block fit into `CACHE_BYTES`.

    Attributes:
        streams: one for each model.
        at: index of the block whose inputs they hold.
        chained: of each block, whether its inputs are what the one before it returns.
    """

    def __init__(
        self,
        subjects: tuple[Subject, Subject],
        blocks: Sequence[str],
        images: ImageSource,
        run: Run,
    ) -> None:
        self.blocks, self.images, self.config, self.accelerator = blocks, images, run.config, run.accelerator
        self.processor = subjects[0].processor
        self.precision = resolve_precision(run.config.precision, subjects[1].model.device)
        self.streams = BlockInputs(subjects[0].model, self.precision), BlockInputs(subjects[1].model, self.precision)
        self.at = 0
        self.chained: list[bool] = []
        self._sizes: list[int] = []
        self._batches: list[int] | None = None

    def start(self, first: int) -> int:
        """Begin at the block of that index; returns how many images all processes use together."""
        with local_work(self.accelerator, "Compensation"):
            own = self._observe()
        # The same for all, so that all take the same steps.
        flows = [flow for flow in gather_objects(self.accelerator, own) if flow is not None]
        pairs = zip(self.blocks, self.blocks[1:], strict=False)
        chained = [all(pair in flow.chained for flow in flows) for pair in pairs]
        self.chained = [False, *chained]
        self._sizes = [max((flow.bytes.get(name, 0) for flow in flows), default=0) for name in self.blocks]
        self.at = max(index for index in range(first + 1) if not self.chained[index])
        self._read()
        while self.at < first:
            self.advance()
        return round(sum_numbers(self.accelerator, [self.streams[0].images])[0])

    def advance(self) -> None:
        """To the next block, past this one as it is now."""
        if self.chained[self.at + 1]:
            with local_work(self.accelerator, "Compensation"):
                for stream in self.streams:
                    stream.advance(stream.model.get_submodule(self.blocks[self.at]))
            self.at += 1
        else:
            self.at += 1
            self._read()

    def _observe(self) -> Flow | None:
        """The dense model's, on the first batch of this process; `None` if it has none."""
        batch = next(self.images.batches(self.processor, self.config.batch_size, self._share()), None)
        if batch is None:
            return None
        model = self.streams[0].model
        inputs = model_inputs(model, batch.pixel_values, batch.inputs)
        with passing(model, batch.pixel_values):
            return observe_flow(model, self.blocks, inputs, self.precision)

    def _share(self) -> Sequence[int]:
        """Batches that this process may read, or those that it has read before."""
        if self._batches is not None:
            return self._batches
        return own_share(self.accelerator, self.images.batch_count(self.config.batch_size))

    def _read(self) -> None:
        """From the images; the first time these decide which are used."""
        for stream in self.streams:
            stream.calls.clear()
        read: list[int] = []
        with local_work(self.accelerator, "Compensation"):
            for batch in self.images.batches(self.processor, self.config.batch_size, self._share()):
                for stream in self.streams:
                    stream.read(self.blocks[self.at], batch)
                read.append(batch.index)
                if self._batches is None and self._full():
                    break
        self._batches = list(dict.fromkeys(read))  # a batch of images of several shapes comes in parts

    def _full(self) -> bool:
        """Whether one more batch might not fit into the cache, where the inputs are largest."""
        used = sum(stream.bytes for stream in self.streams) * max(self._sizes) // self._sizes[self.at]
        return used * (1 + 1 / len(self.streams[0].calls)) > CACHE_BYTES
