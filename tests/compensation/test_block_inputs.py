"""The inputs of blocks against those of a full forward pass, while the compressed model changes block by block."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_vitcompress.architectures.inputs import model_inputs
from hf_vitcompress.architectures.layers import block_names
from hf_vitcompress.compensation import block_inputs
from hf_vitcompress.compensation.block_calls import Call
from hf_vitcompress.compensation.block_inputs import PairedBlockInputs
from hf_vitcompress.errors import CompensationError
from hf_vitcompress.images.images import ImageSource
from support.streams import BATCH, NAFLEX, SWIN, VIT, YOLOS, padded_images, streams_of
from support.zoo import HEADS, Head

ONE_OF_EACH = list({(head.family, head.variant): head for head in HEADS}.values())

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def images_of(head: Head, count: int = 20) -> ImageSource:
    return ImageSource(list(head.pixels(count)), None, "the images")


def full_pass(model: PreTrainedModel, block: str, images: ImageSource) -> list[Call]:
    """What the whole model calls the block with."""
    calls: list[Call] = []
    handle = model.get_submodule(block).register_forward_pre_hook(
        lambda _, arguments, named: calls.append(Call.of(arguments, named)), with_kwargs=True
    )
    for batch in images.batches(None, BATCH):
        model(**model_inputs(model, batch.pixel_values, batch.inputs))
    handle.remove()
    return calls


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, tuple | list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


def assert_inputs_of(streams: PairedBlockInputs, images: ImageSource) -> None:
    """The streams hold what full passes of the models, as they are now, call the block with."""
    name = streams.blocks[streams.at]
    for stream in streams.streams:
        expected = full_pass(stream.model, name, images)
        assert len(stream.calls) == len(expected)
        for call, other in zip(stream.calls, expected, strict=True):
            assert_same(call.hidden, other.hidden)
            assert (call.place, *map(type, call.arguments)) == (other.place, *map(type, other.arguments))
            assert_same([call.arguments, call.named], [other.arguments, other.named])


def change(model: PreTrainedModel, block: str) -> None:
    """What solving the block again does to it."""
    for parameter in model.get_submodule(block).parameters():
        parameter.mul_(0.9)


def test_images_of_several_shapes_are_read_again_as_they_were_the_first_time() -> None:
    models = SWIN.dense(), SWIN.dense()  # whose second stage does not read what the first returns
    images = images_of(SWIN)
    images.images = [image[:, : 32 - 8 * (i % 2)] for i, image in enumerate(images.images)]
    streams = streams_of(models, images)
    assert streams.start(0) == 20
    assert_inputs_of(streams, images)
    while streams.at + 1 < len(streams.blocks):
        streams.advance()
        assert_inputs_of(streams, images)


@pytest.mark.parametrize("head", ONE_OF_EACH, ids=str)
def test_every_block_sees_what_a_full_pass_of_the_solved_model_gives_it(head: Head) -> None:
    models, images = (head.dense(), head.dense()), images_of(head)
    streams = streams_of(models, images)
    assert streams.start(0) == 20
    for index, name in enumerate(streams.blocks):
        if index:
            streams.advance()
        assert streams.at == index
        assert_inputs_of(streams, images)
        change(models[1], name)
    first, second = (stream.calls[0].hidden for stream in streams.streams)
    assert not torch.allclose(first, second, rtol=1e-2)


@pytest.mark.parametrize("head", [VIT, SWIN, YOLOS], ids=str)
def test_it_can_start_at_any_block(head: Head) -> None:
    models, images = (head.dense(), head.dense()), images_of(head)
    for first, name in enumerate(block_names(models[0])):
        streams = streams_of(models, images)
        assert streams.start(first) == 20
        assert streams.at == first
        assert_inputs_of(streams, images)
        change(models[1], name)


class Watched(list[Any]):
    """Images that remember how often they were read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(("head", "passes"), [(VIT, 1), (SWIN, 2), (YOLOS, 2)], ids=str)
def test_the_models_run_from_the_images_only_where_blocks_are_not_chained(head: Head, passes: int) -> None:
    models = head.dense(), head.dense()
    images = Watched(head.pixels(20))
    runs = {id(model): 0 for model in models}
    for model in models:
        model.register_forward_pre_hook(lambda module, _: runs.update({id(module): runs[id(module)] + 1}))
    streams = streams_of(models, ImageSource(images, None, "the images"))
    streams.start(0)
    for _ in streams.blocks[1:]:
        streams.advance()
    batches = 3
    assert list(runs.values()) == [1 + passes * batches, passes * batches]  # one batch says how the blocks are chained
    assert images.reads == BATCH + 20 * passes


def test_images_that_cannot_be_read_are_left_out_each_time() -> None:
    models, pixels = (SWIN.dense(), SWIN.dense()), list(SWIN.pixels(20))
    # The first batch is lost as a whole, and one image of the second.
    raw = Watched([*[b"none"] * BATCH, *pixels[:5], b"none", *pixels[5:]])
    images = ImageSource(raw, None, "the images")
    streams = streams_of(models, images)
    assert streams.start(0) == 20
    raw.reads = 0
    for _ in streams.blocks[1:]:
        streams.advance()
        assert [len(call.hidden) for call in streams.streams[0].calls] == [7, 8, 5]
    assert raw.reads == 21  # not those of the first batch
    assert_inputs_of(streams, images)


def test_without_any_image_there_are_none() -> None:
    streams = streams_of((VIT.dense(), VIT.dense()), ImageSource([b"none"] * 9, None, "the images"))
    assert streams.start(1) == 0


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_largest_inputs_fit_into_the_cache_wherever_it_starts(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 tokens of 16 floats in two models are 32,768 bytes an image in the first stage, and half in the second."""
    monkeypatch.setattr(block_inputs, "CACHE_BYTES", 1_000_000)
    images = images_of(SWIN, 48)
    streams = streams_of((SWIN.dense(), SWIN.dense()), images, batch_size=4)
    assert streams.start(first) == 28
    assert sum(stream.bytes for stream in streams.streams) == 28 * 32_768 // (1 + first // 2)


def test_the_largest_inputs_count_where_they_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a model whose later blocks have more tokens."""
    monkeypatch.setattr(block_inputs, "CACHE_BYTES", 1_000_000)
    streams = streams_of((SWIN.dense(), SWIN.dense()), images_of(SWIN, 48), batch_size=4)
    streams.blocks = list(reversed(streams.blocks))
    assert streams.start(0) == 28
    assert sum(stream.bytes for stream in streams.streams) == 28 * 16_384
    assert streams.chained == [False] * 4


def test_other_arguments_count_as_well() -> None:
    streams = streams_of((NAFLEX.dense(), NAFLEX.dense()), padded_images(NAFLEX)[0])
    streams.start(0)
    calls = [call for stream in streams.streams for call in stream.calls]
    given = [value for call in calls for value in (*call.arguments, *call.named.values()) if isinstance(value, Tensor)]
    assert len(given) == 2  # the attention mask
    hidden = sum(call.hidden.nbytes for call in calls)
    assert sum(stream.bytes for stream in streams.streams) == hidden + sum(value.nbytes for value in given)


def test_padding_is_known_in_every_block() -> None:
    images, mask = padded_images(NAFLEX)
    streams = streams_of((NAFLEX.dense(), NAFLEX.dense()), images)
    streams.start(0)
    streams.advance()
    assert_inputs_of(streams, images)
    for stream in streams.streams:
        assert [call.mask.tolist() for call in stream.calls if call.mask is not None] == [mask.tolist()]


def test_a_block_that_the_model_does_not_use_is_named() -> None:
    models = VIT.dense(), VIT.dense()
    for model in models:
        last = model.layers[1]
        model.layers = model.layers[:1]
        model.unused = last
    streams = streams_of(models, images_of(VIT))
    streams.blocks = ["layers.0", "unused"]
    streams.start(0)
    with pytest.raises(CompensationError, match=r"'unused'.*skip_modules=\[\"unused"):
        streams.advance()
    assert not any(module._forward_pre_hooks for model in models for module in model.modules())


@pytest.mark.parametrize(("precision", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_models_and_blocks_run_in_the_precision_of_the_config(precision: str, expected: torch.dtype) -> None:
    models = SWIN.dense(), SWIN.dense()
    seen: list[torch.dtype] = []
    for model in models:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    streams = streams_of(models, images_of(SWIN), precision=precision)
    streams.start(0)
    for _ in streams.blocks[1:]:
        streams.advance()
    assert set(seen) == {expected}
