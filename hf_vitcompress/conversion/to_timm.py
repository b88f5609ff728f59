"""A model of transformers becomes one of timm that computes the same, or is refused."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..architectures.inputs import height_and_width
from ..errors import UnsupportedModelError, one_line
from ..images.unloaded import UnloadedProcessor
from ..model.assembly import is_factored
from ..model.loading import load_dense_model, load_image_processor
from ..modeling_factored import CONFIG_FILE
from ..runtime.random_state import independent_of_caller
from .families.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from .families.vit import DEIT, VIT
from .from_timm import Conversion
from .processing import data_config_of
from .proof import Pair, compare
from .sources import require_timm
from .state import Names, State, to_timm

logger = logging.get_logger(__name__)

TIMM_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
"""By the name in transformers, timm's."""

FOREIGN = {"tag": "", "license": None, "hf_hub_id": None, "origin_url": None, "paper_ids": None, "url": ""}
"""What timm says of the weights that are published for an architecture, and what does not hold for others."""


@dataclass(frozen=True)
class WayBack:
    """What a class of transformers is in timm.

    Attributes:
        architecture: timm's name of a model of that kind; its sizes are arguments.
        names: of the tensors.
        arguments: of `timm.create_model`, beyond those that all have.
        prepare: changes timm's state dict in place.
    """

    architecture: str
    names: Names
    arguments: Callable[[Any], dict[str, Any]] = lambda config: {}
    prepare: Callable[[State], None] = lambda state: None


def _place_class_token(state: State) -> None:
    """Add its position to the class token: with registers, timm's models have positions of patches alone."""
    positions = state["pos_embed"]
    state["cls_token"], state["pos_embed"] = state["cls_token"] + positions[:, :1], positions[:, 1:]


WAYS_BACK = {
    "ViTForImageClassification": WayBack("vit_base_patch16_224", VIT.names),
    "ViTModel": WayBack("vit_base_patch16_224", VIT.names),
    "DeiTForImageClassificationWithTeacher": WayBack("deit_base_distilled_patch16_224", DEIT.names),
    "Dinov2Model": WayBack("vit_base_patch14_dinov2", DINOV2.names, lambda config: {"init_values": 1.0}),
    "Dinov2WithRegistersModel": WayBack(
        "vit_base_patch14_reg4_dinov2",
        DINOV2_WITH_REGISTERS.names,
        lambda config: {"init_values": 1.0, "reg_tokens": config.num_register_tokens},
        _place_class_token,
    ),
}
"""By the name of the class."""


def convert_to_timm(model: str | Path | PreTrainedModel) -> nn.Module:
    """A plain timm module that computes what a dense model of transformers does.

    Both are run on random images, and a difference larger than rounding is refused.

    Args:
        model: ViT, DINOv2 or DeiT with a distillation token; a folder, a Hub id or a loaded model, which is left as it
            was.

    Returns:
        the module in evaluation mode, whose `pretrained_cfg` says how images are prepared and what the classes are
        called. `timm.models.save_for_hf` saves it for `timm.create_model("local-dir:…", pretrained=True)`.

    Raises:
        UnsupportedModelError: timm has no module that computes the same, or the model cannot be loaded.
        MissingPackageError: timm is missing.
    """
    return cast(nn.Module, conversion_to_timm(model).with_warnings())


@independent_of_caller()
def conversion_to_timm(model: str | Path | PreTrainedModel) -> Conversion:
    """As `convert_to_timm`, with the difference, and the remarks in place of warnings."""
    require_timm("Converting to timm")
    loaded = load_dense_model(model)
    kind, name = type(loaded).__name__, str(loaded.config.name_or_path or type(loaded).__name__)
    if is_factored(loaded):
        raise UnsupportedModelError(
            f"{name} is compressed, and timm's plain modules have no factored layers. Give a dense model, or what "
            "hf_vitcompress.to_dense makes of it."
        )
    if kind not in WAYS_BACK:
        raise UnsupportedModelError(
            f"{name} is a {kind}, which is not converted to timm. These are: {', '.join(WAYS_BACK)}."
        )
    way, headed = WAYS_BACK[kind], loaded.base_model is not loaded
    arguments = _arguments(loaded, way, headed)
    module = _built(loaded, way, arguments, headed)
    difference = _checked_difference(loaded, module, headed, name)
    module.to(next(loaded.parameters()).dtype)
    return Conversion(module, name, difference, _remarks(loaded), arguments)


def save_timm(done: Conversion, folder: str | Path) -> None:
    """Write a module of timm in timm's format, for `timm.create_model("local-dir:…", pretrained=True)`."""
    timm = require_timm("Converting to timm")
    names = done.model.pretrained_cfg.get("label_names")
    content = {"model_args": done.arguments, **({"label_names": names} if names else {})}
    timm.models.save_for_hf(done.model, str(folder), model_config=content, safe_serialization=True)
    file = Path(folder) / CONFIG_FILE
    written = json.loads(file.read_text(encoding="utf-8"))
    # It stands beside the arguments as well, and a TimmWrapper of transformers cannot take it twice.
    written["model_args"].pop("num_classes", None)
    file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _arguments(model: PreTrainedModel, way: WayBack, headed: bool) -> dict[str, Any]:
    config: Any = model.config
    if config.hidden_act not in TIMM_ACTIVATIONS:
        raise UnsupportedModelError(f"timm's vision transformers have no activation like {config.hidden_act}.")
    if getattr(config, "use_swiglu_ffn", False):
        raise UnsupportedModelError("DINOv2 with a gated feed-forward is not converted to timm; the other sizes are.")
    return {
        "img_size": height_and_width(config.image_size),
        "patch_size": height_and_width(config.patch_size),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": getattr(config, "mlp_ratio", None) or config.intermediate_size / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "act_layer": TIMM_ACTIVATIONS[config.hidden_act],
        "num_classes": config.num_labels if headed else 0,
        **way.arguments(config),
    }


def _built(model: PreTrainedModel, way: WayBack, arguments: dict[str, Any], headed: bool) -> Any:
    config: Any = model.config
    settings = {**FOREIGN, **data_config_of(_processor(model), config, arguments["img_size"])}
    if headed:
        settings["label_names"] = [config.id2label[index] for index in range(config.num_labels)]
    timm = require_timm("Converting to timm")
    # Without storage no random number is drawn; every tensor of these models is in the state dict.
    module = timm.create_model(way.architecture, pretrained_cfg_overlay=settings, device="meta", **arguments)
    state = _state(model, way, f"{model.base_model_prefix}." if headed else "")
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"The weights of this {type(model).__name__} are not those that timm's module has: {one_line(error)}."
        ) from error
    return module.eval()


def _state(model: PreTrainedModel, way: WayBack, body: str) -> State:
    """Of what runs: neither a pooler that timm's models lack nor the token of masked patches."""
    tensors = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    wanted = {n: t for n, t in tensors.items() if not n.startswith("pooler.") and not n.endswith("mask_token")}
    state = to_timm(wanted, way.names, body)
    way.prepare(state)
    return state


def _processor(model: PreTrainedModel) -> Any:
    found = load_image_processor(model)
    return None if isinstance(found, UnloadedProcessor) else found


def _remarks(model: PreTrainedModel) -> tuple[str, ...]:
    found = []
    if getattr(model, "pooler", None) is not None:
        found.append("The pooler, a layer behind the class token, is left out: timm's models have none.")
    if _processor(model) is None:
        found.append("There is no image processor beside the model; pretrained_cfg has timm's default mean and std.")
    return tuple(found)


def _checked_difference(model: PreTrainedModel, module: nn.Module, headed: bool, name: str) -> float:
    config: Any = model.config
    twin = copy.deepcopy(model).to("cpu", torch.float32)  # type: ignore[arg-type]
    shape = (config.num_channels, *height_and_width(config.image_size))
    pair = Pair(twin, module, headed, tokens=True, pooled=headed, shape=shape)

    def in_double() -> Pair:
        return replace(pair, model=copy.deepcopy(twin).double(), module=copy.deepcopy(module).double())

    difference = compare(pair, name, in_double)
    if not difference.is_rounding:
        raise UnsupportedModelError(
            f"{name} was tried as a model of timm, and its output differs by {difference.largest:.1e}, which is more "
            f"than rounding. timm's norms have eps 1e-6, and those of this model {config.layer_norm_eps}."
        )
    return difference.largest
