"""How a model is run: in which arithmetic, and without side effects."""

import contextlib
import math
import threading
import weakref
from collections.abc import Collection, Iterator

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration_factored import inner_configs
from ..errors import DataError, UnsupportedModelError, VitCompressError, is_out_of_memory, one_line
from .inputs import height_and_width, image_shape
from .timm_inputs import WRAPPER

EAGER_TOKENS = 640
"""Up to so many tokens of an image, eager attention has the faster backward pass on a CPU.

With more it is slower, too, and the scores that it stores, heads × tokens² numbers of every image and layer, fill
memory: 384 × 384 pixels in patches of 16 are 576 tokens, 800 × 1333 are 4150 and 32 GB in a batch of 16 and 12 layers.
"""


def attention_implementations(model: PreTrainedModel) -> dict[str, str]:
    """Which attention function a model uses, and those of the models in it by the name of their config.

    As `attn_implementation` takes it; a model and its backbone may differ.
    """
    return {
        name: config._attn_implementation
        for name, config in {"": model.config, **inner_configs(model.config)}.items()
        if config._attn_implementation is not None
    }


def _eager_pays(model: PreTrainedModel) -> bool:
    """Whether every config in the model's that says for what images it is asks for few enough scores."""
    configs = (model.config, *inner_configs(model.config).values())
    scores = [count for config in configs if (count := _scores(config)) is not None]
    return bool(scores) and max(scores) <= EAGER_TOKENS**2


def _scores(config: PreTrainedConfig) -> int | None:
    """Queries × keys of one head for an image; `None` where the config does not say how large images or patches are."""
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if image is None or patch is None:
        return None
    tokens = math.prod(
        -(-size // own) for size, own in zip(height_and_width(image), height_and_width(patch), strict=True)
    )
    window = getattr(config, "window_size", None)
    return tokens * (tokens if window is None else min(tokens, math.prod(height_and_width(window))))


_turns: dict[int, threading.RLock] = {}
"""By the id of a config: who runs the models that have it."""
_new_turn = threading.Lock()


@contextlib.contextmanager
def own_turn(model: PreTrainedModel) -> Iterator[None]:
    """Other threads that want a turn with this model, a model in it or one with the same config object wait meanwhile.

    Modes, hooks and the attention implementation belong to those, and not to a thread.
    """
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    with contextlib.ExitStack() as turns:
        for _, config in sorted(configs.items()):  # in one order, so that no two threads wait for each other
            turns.enter_context(_turn_of(config))
        yield


def _turn_of(config: PreTrainedConfig) -> threading.RLock:
    with _new_turn:
        if id(config) not in _turns:
            _turns[id(config)] = threading.RLock()
            weakref.finalize(config, _turns.pop, id(config))
        return _turns[id(config)]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextlib.contextmanager
def without_dropout(model: PreTrainedModel) -> Iterator[None]:
    """A turn with the model in evaluation mode."""
    with own_turn(model), evaluating(model):
        yield


@contextlib.contextmanager
def evaluation_mode(model: PreTrainedModel, trained: Collection[nn.Parameter] = ()) -> Iterator[None]:
    """No dropout, gradients of `trained` parameters only, eager attention where `EAGER_TOKENS` says that it is faster.

    Undone afterwards; other threads wait for their turn with the model.
    """
    with without_dropout(model):
        wanted = [parameter.requires_grad for parameter in model.parameters()]
        attention = attention_implementations(model)
        eager = {name: "eager" if used == "sdpa" else used for name, used in attention.items()}
        settable = model.device.type == "cpu" and model._can_set_attn_implementation() and _eager_pays(model)
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        try:
            if settable and eager != attention:
                model.set_attn_implementation(eager)
            yield
        finally:
            for parameter, requires_grad in zip(model.parameters(), wanted, strict=True):
                parameter.requires_grad_(requires_grad)
            if attention_implementations(model) != attention:
                model.set_attn_implementation(attention)


@contextlib.contextmanager
def passing(model: PreTrainedModel, pixel_values: Tensor, lower: str = "batch_size") -> Iterator[None]:
    """Within the block, these images pass through the model; says in one sentence why they do not.

    Args:
        pixel_values: (n, channels, height, width), or (n, patches, features).
        lower: setting that makes batches smaller.

    Raises:
        DataError: the device has not enough memory for the batch, or the model takes images of another shape.
        UnsupportedModelError: layers of the model compute in different types, or a dense model of timm does not run.
    """
    try:
        yield
    except VitCompressError:
        raise
    except (ValueError, RuntimeError, MemoryError, AssertionError) as error:  # the last are timm's
        if is_out_of_memory(error):
            raise DataError(
                f"The device {str(model.device)!r} has not enough memory for {type(model).__name__} and a batch of "
                f"{len(pixel_values)} images of shape {tuple(pixel_values.shape[1:])}. Lower {lower}."
            ) from error
        dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
        if "dtype" in str(error) and len(dtypes) > 1:
            raise UnsupportedModelError(
                f"The weights of this {type(model).__name__} are of several types ({', '.join(dtypes)}), and it cannot "
                "be run as it is. Give it one, for instance by model.float()."
            ) from error
        refusal = _other_shape(model, pixel_values) or _not_running(model, pixel_values, error)
        if refusal is None:
            raise
        raise refusal from error


def _not_running(model: PreTrainedModel, pixel_values: Tensor, error: Exception) -> UnsupportedModelError | None:
    """What to say of a module of timm that fails on images of its size; `None` of models with modules of ours."""
    if model.config.model_type != WRAPPER:
        return None
    shape = " × ".join(str(size) for size in pixel_values.shape[1:])
    return UnsupportedModelError(
        f"This {type(model.timm_model).__name__} of timm does not run, as it is, on images of its size ({shape}): "
        f"{one_line(error)}. Check the arguments that it was made with."
    )


def _other_shape(model: PreTrainedModel, pixel_values: Tensor) -> DataError | None:
    """What to say where images are not what the config says; `None` where they are, or where it says nothing."""
    found, name = tuple(pixel_values.shape[1:]), type(model).__name__
    try:
        channels, height, width = image_shape(model)
    except UnsupportedModelError:
        return None
    if len(found) != 3 or found == (channels, height, width):
        return None
    if found[0] != channels:
        other = f"an image processor for {channels} (do_convert_rgb=False; image_mean and image_std of as many numbers)"
        return DataError(
            f"Images arrive with {found[0]} channels, and the config of {name} says num_channels={channels}. Give "
            f"{'pictures' if channels == 3 else other}, or a DataLoader of ready `pixel_values` (n, {channels}, "
            f"{height}, {width})."
        )
    return DataError(
        f"Images arrive with {found[1]} × {found[2]} pixels, and {name} takes {height} × {width} (image_size in its "
        f"config). Set the image processor's size to that, in preprocessor_config.json or by image_processor=…; a "
        "DataLoader has to give images of that size."
    )
