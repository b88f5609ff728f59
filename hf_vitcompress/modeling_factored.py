"""Factored Vision Transformers: ordinary `transformers` models with smaller linear layers, or products of two of them.

This file needs torch and transformers only. It is copied beside every saved checkpoint, so that
`from_pretrained(folder, trust_remote_code=True)` works where the package is not installed.

For any model class `X` of transformers, or one that is registered with its Auto classes, there is a class
`FactoredX(X)` and for its config a `Factored<Config>`, made on first use by `factored_model_class` and
`factored_config_class` and reachable as attributes of this module. `register` hangs those of one model type on the
Auto classes; `MODEL_TYPES` are registered when the package is imported.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import shutil
import tempfile
from typing import Any, NamedTuple, cast, get_args

import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, conversion_mapping
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto import CONFIG_MAPPING, modeling_auto

MODEL_TYPE_PREFIX = "vitcompress_"

REMOTE_FILE = "modeling_factored.py"
CARD_FILE = "README.md"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""Names of the files that `from_pretrained` reads; others beside them, such as a moving average, are none of ours."""
HUB_SETTINGS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")

# A dense class that is pointed at a factored checkpoint would find none of the factored weights and start from
# random ones with nothing but a warning. On disk the config and the configs in it therefore carry this text in a field
# that is declared as a number: the dense config class refuses it, and its error shows the text. The real values stay in
# `compression`; `FactoredConfigMixin.from_dict` puts them back.
GUARD_FIELDS = ("initializer_range", "initializer_factor", "layer_norm_eps")
"""Preferred for it; a config that has none of them carries it in the first number that it has."""
GUARD_TEXT = (
    "This checkpoint has factored layers, which a dense model class cannot hold. Run `pip install hf-vitcompress`, "
    "then `import hf_vitcompress` and load it with an Auto class, or pass trust_remote_code=True to an Auto class."
)

MODEL_TYPES = (
    "vit",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "beit",
    "data2vec-vision",
    "swin",
    "swinv2",
    "vit_mae",
    "vit_msn",
    "ijepa",
    "yolos",
    "clip",
    "clip_vision_model",
    "siglip",
    "siglip_vision_model",
    "siglip2",
    "siglip2_vision_model",
    "dpt",
    "depth_anything",
    "upernet",
    "llava",
)
"""What `register` makes known to the Auto classes when the package is imported; others when they are first used."""


class Attention(NamedTuple):
    """What the parts of an attention class are called, if its forward pass is that of `FactoredAttentionMixin`.

    `output` is `None` where another module applies the output projection.
    """

    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    output: str | None = "o_proj"
    head_dim: str = "head_dim"
    scaling: str = "scaling"
    dropout: str = "attention_dropout"


_OUT_PROJ = Attention(output="out_proj", scaling="scale", dropout="dropout")
_SELF_ATTENTION = Attention("query", "key", "value", None, "attention_head_size", "scaling", "dropout_prob")
_USUAL = (Attention(), _SELF_ATTENTION)

ATTENTIONS: dict[str, Attention] = {
    f"transformers.models.{path}": names
    for path, names in {
        "vit.modeling_vit.ViTAttention": Attention(),
        "deit.modeling_deit.DeiTAttention": Attention(),
        "dinov2.modeling_dinov2.Dinov2Attention": Attention(),
        "dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersAttention": Attention(),
        "dinov3_vit.modeling_dinov3_vit.DINOv3ViTAttention": Attention(dropout="dropout"),
        "beit.modeling_beit.BeitAttention": Attention(),
        "swin.modeling_swin.SwinAttention": Attention(),
        "vit_mae.modeling_vit_mae.ViTMAEAttention": Attention(),
        "vit_msn.modeling_vit_msn.ViTMSNAttention": Attention(),
        "ijepa.modeling_ijepa.IJepaAttention": Attention(),
        "yolos.modeling_yolos.YolosSelfAttention": _SELF_ATTENTION,
        "dpt.modeling_dpt.DPTSelfAttention": _SELF_ATTENTION,
        "clip.modeling_clip.CLIPAttention": _OUT_PROJ,
        "siglip.modeling_siglip.SiglipAttention": _OUT_PROJ,
        "siglip2.modeling_siglip2.Siglip2Attention": _OUT_PROJ,
    }.items()
}
"""By the path of the class: the attention whose queries and keys may share a `down`, and whose heads may be cut."""


class FactoredLinear(nn.Module):
    """`y = up(down(x))`, a linear layer of limited rank.

    Args:
        in_features: size of the last dimension of the input, `x (..., in_features)`.
        out_features: size of the last dimension of the output, `y (..., out_features)`.
        rank: rows of `down` and columns of `up`; at least 1.
        bias: whether `up` adds a bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"A factored layer needs a rank of at least 1, not {rank}.")
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    @property
    def in_features(self) -> int:
        return self.down.in_features

    @property
    def out_features(self) -> int:
        return self.up.out_features

    @property
    def rank(self) -> int:
        return self.down.out_features

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(hidden_states))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


class FactoredAttentionMixin:
    """Attention whose queries and keys may share a `down`, and whose values may have a head dimension of their own.

    `qk_down (rank, d)`, where there is one, reads the hidden states for queries and keys, each (·, rank) then. The
    number of heads is that of the queries; each takes an equal part of what the value projection gives.
    """

    names: Attention
    eager_attention: Any
    rotate: Any

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        names, own = self.names, cast(Any, self)
        head_dim, shape = getattr(own, names.head_dim), hidden_states.shape[:-1]
        matched = own.qk_down(hidden_states) if hasattr(self, "qk_down") else hidden_states
        query = getattr(own, names.query)(matched).view(*shape, -1, head_dim).transpose(1, 2)
        key = getattr(own, names.key)(matched).view(*shape, -1, head_dim).transpose(1, 2)
        value = getattr(own, names.value)(hidden_states).view(*shape, query.shape[1], -1).transpose(1, 2)
        if position_embeddings is not None:
            query, key = type(self).rotate(query, key, *position_embeddings)
        value_dim, implementation = value.shape[-1], own.config._attn_implementation
        if implementation != "eager" and value_dim < head_dim:
            # Fused kernels want one head dimension for all; zeros in the values are zeros in the output.
            value = functional.pad(value, (0, head_dim - value_dim))
        output, weights = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, type(self).eager_attention)(
            self,
            query,
            key,
            value,
            self._with_position_bias(attention_mask, hidden_states.shape[0]),
            dropout=getattr(own, names.dropout) if own.training else 0.0,
            scaling=getattr(own, names.scaling),
            **kwargs,
        )
        output = output[..., :value_dim].reshape(*shape, -1)
        return output if names.output is None else getattr(own, names.output)(output), weights

    def _with_position_bias(self, attention_mask: torch.Tensor | None, windows: int) -> torch.Tensor | None:
        """The mask (windows of one image, tokens, tokens) of windowed attention, with a bias for each head; as in Swin.

        Elsewhere the mask as it is.
        """
        if not hasattr(self, "relative_position_bias"):
            return attention_mask
        bias = self.relative_position_bias()
        if attention_mask is None:
            return bias
        return bias + attention_mask.unsqueeze(1).repeat(windows // attention_mask.shape[0], 1, 1, 1)


class FactoredConfigMixin:
    """Adds `compression` to a config: `{"layers": {module name: shape}}`.

    Shapes are plain data:

    * of a linear layer: `{"rank": r}`, a product of two layers; `{"in_features": i}` and `{"out_features": o}`, what
      is left of a layer whose inputs or outputs were pruned; or both;
    * of an attention module: `{"qk_rank": r}`, one `qk_down` for its queries and keys.

    Names are in-memory module names, with or without the prefix of the base model (`vit.layers.0.mlp.fc1` and
    `layers.0.mlp.fc1` name the same layer of a headed and of a headless model).
    """

    compression: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        compression = dict(config_dict.get("compression") or {})
        restored = {**config_dict, "compression": compression}
        for path in list(compression):
            *inner, field = path.split(".")
            place = restored
            for key in inner if GUARD_TEXT in _values_at(restored, path) else ():
                place[key] = dict(place[key])
                place = place[key]
            if place.get(field) == GUARD_TEXT:
                place[field] = compression.pop(path)
        return super().from_dict(restored if config_dict.get("compression") else config_dict, **kwargs)  # type: ignore[misc]

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Write `config.json`, with the guard against dense classes and the way to the code beside it."""
        content = json.loads(self.to_json_string(use_diff=use_diff))  # type: ignore[attr-defined]
        content["compression"] = dict(content.get("compression") or {})
        for name, (config, field) in guards_of(cast(PreTrainedConfig, self)).items():
            place = content.get(name) if name else content
            if isinstance(place, dict):
                content["compression"][f"{name}.{field}".removeprefix(".")] = getattr(config, field)
                place[field] = GUARD_TEXT
        content["auto_map"] = self._auto_map()
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _auto_map(self) -> dict[str, str]:
        module = REMOTE_FILE.removesuffix(".py")
        auto_map = {"AutoConfig": f"{module}.{type(self).__name__}"}
        for auto_class, dense_classes in heads_of(self.model_type).items():  # type: ignore[attr-defined]
            names = [f"Factored{dense.__name__}" for dense in dense_classes]
            chosen = [name for name in names if name in (self.architectures or [])]  # type: ignore[attr-defined]
            auto_map[auto_class] = f"{module}.{(chosen or names)[0]}"
        return auto_map


def _values_at(content: dict[str, Any], path: str) -> list[Any]:
    """The value at that dotted path of nested dictionaries, in a list; empty where there is none."""
    value: Any = content
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return []
        value = value[key]
    return [value]


def inner_configs(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """Those of the models inside a larger one, by the attribute that holds them."""
    return {name: value for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}


def guards_of(config: PreTrainedConfig) -> dict[str, tuple[PreTrainedConfig, str]]:
    """The configs that refuse `GUARD_TEXT`, and the field in which they do, by attribute: "" of the config itself.

    Empty where neither it nor a config in it declares a number; nothing then keeps a dense class from the checkpoint.
    """
    inner = inner_configs(config)
    inner.pop("text_config", None)  # the text model of a larger one is as it was
    fields = {name: (own, _guard_field(own)) for name, own in {"": config, **inner}.items()}
    return {name: (own, field) for name, (own, field) in fields.items() if field is not None}


_NUMBERS = {int, float, type(None)}


def _guard_field(config: PreTrainedConfig) -> str | None:
    """Name of the number in whose place `GUARD_TEXT` stands on disk; `None` of a config that declares none."""
    fields = {field.name: field.type for field in dataclasses.fields(config)}
    numbers = [name for name, declared in fields.items() if set(get_args(declared) or [declared]) <= _NUMBERS]
    return next((name for name in (*GUARD_FIELDS, *numbers) if name in numbers), None)


class FactoredModelMixin:
    """Replaces, after the dense class has built itself, the modules that `config.compression` names.

    Attributes:
        companions: objects whose `save_pretrained(folder)` is called when the model is saved, such as its image
            processor.
    """

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.companions: list[Any] = []
        self._resize_layers()
        # A second time: the first saw the dense layers.
        self.post_init()  # type: ignore[attr-defined]

    def _resize_layers(self) -> None:
        layers = (getattr(self.config, "compression", None) or {}).get("layers", {})  # type: ignore[attr-defined]
        narrowed = {}
        for name, shape in layers.items():
            module_name, module = self._find_layer(name)
            known = isinstance(shape, dict) and bool(shape)
            if known and isinstance(module, nn.Linear) and set(shape) <= {"rank", "in_features", "out_features"}:
                self.set_submodule(module_name, _resized(name, module, **shape))  # type: ignore[attr-defined]
                parent, _, child = module_name.rpartition(".")
                # Of anything else in that module, such as a feed-forward beside the projections, attention is none.
                if "out_features" in shape and child in _projections(self.get_submodule(parent)):  # type: ignore[attr-defined]
                    narrowed[parent] = name
            elif known and set(shape) == {"qk_rank"} and shape["qk_rank"] > 0 and _has_plain_queries(module):
                _share_down(module, shape["qk_rank"], name)
                narrowed[module_name] = name
            else:
                raise ValueError(
                    f"config.compression gives {name!r}, a {type(module).__name__} in {type(self).__name__}, the shape "
                    f"{shape!r}. An nn.Linear has a rank, in_features or out_features, attention has a qk_rank."
                )
        for parent, name in narrowed.items():
            attention = self.get_submodule(parent)  # type: ignore[attr-defined]
            attention.__class__ = _attention_class(type(attention), name)

    def _find_layer(self, name: str) -> tuple[str, nn.Module]:
        prefix = f"{self.base_model_prefix}."  # type: ignore[attr-defined]
        # The last is for a tower that is loaded without what was around it.
        for candidate in (name, name.removeprefix(prefix), prefix + name, name.partition(".")[2]):
            try:
                return candidate, self.get_submodule(candidate)  # type: ignore[attr-defined]
            except AttributeError:
                continue
        raise ValueError(
            f"config.compression names the layer {name!r}, which {type(self).__name__} does not have. "
            "The config belongs to another architecture or was edited by hand."
        )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with tensors under their in-memory names, this file, and the model's `companions`.

        Everything is written beside `save_directory` first and then moved in, so that a full disk or an interruption
        leaves no half-written checkpoint.
        """
        kwargs.setdefault("save_original_format", False)
        target = os.path.abspath(save_directory)
        if os.path.isfile(target):
            raise NotADirectoryError(f"{target!r} is a file; give the name of a folder to save to.")
        # Of a model with adapters transformers saves these alone; weights in the folder may be those they belong to.
        adapters = getattr(self, "_hf_peft_config_loaded", False)
        if adapters or kwargs.get("distributed_checkpoint") or not kwargs.get("is_main_process", True):
            super().save_pretrained(target, *args, **kwargs)  # type: ignore[misc]
            return
        if kwargs.pop("push_to_hub", False):
            settings = {name: kwargs.pop(name) for name in HUB_SETTINGS if name in kwargs}
            repo_id = settings.pop("repo_id", os.path.basename(target))
            self.save_pretrained(target, *args, **kwargs)
            if importlib.util.find_spec("hf_vitcompress") is None:
                super().push_to_hub(repo_id, **settings)  # type: ignore[misc]
            else:
                importlib.import_module("hf_vitcompress.publishing").push_folder(target, repo_id, **settings)
            return
        os.makedirs(target, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as staging:
            super().save_pretrained(staging, *args, **kwargs)  # type: ignore[misc]
            shutil.copyfile(inspect.getsourcefile(FactoredLinear) or __file__, os.path.join(staging, REMOTE_FILE))
            if os.path.isfile(card := os.path.join(target, CARD_FILE)):
                shutil.copyfile(card, os.path.join(staging, CARD_FILE))  # companions may renew a part of it
            for companion in self.companions:
                companion.save_pretrained(staging)
            written = [
                os.path.relpath(os.path.join(root, n), staging) for root, _, names in os.walk(staging) for n in names
            ]
            for name in written:
                os.makedirs(os.path.dirname(os.path.join(target, name)), exist_ok=True)
                os.replace(os.path.join(staging, name), os.path.join(target, name))
            for name in os.listdir(target):
                if name not in written and holds_weights(name):
                    os.remove(os.path.join(target, name))  # of an earlier save in another number of shards

    def to_dense(self) -> PreTrainedModel:
        """The dense model that computes the same; see `hf_vitcompress.densification.to_dense`.

        Raises:
            ModuleNotFoundError: the package is not installed.
        """
        return importlib.import_module("hf_vitcompress.densification").to_dense(self)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """As in transformers, and where hf_vitcompress is installed with a card that says what the model is.

        That card keeps what a person wrote into it on the Hub; see `hf_vitcompress.publishing.push_model`.
        """
        if importlib.util.find_spec("hf_vitcompress") is None:
            return super().push_to_hub(repo_id, **kwargs)  # type: ignore[misc]
        return importlib.import_module("hf_vitcompress.publishing").push_model(self, repo_id, **kwargs)


def _resized(
    name: str,
    dense: nn.Linear,
    rank: int | None = None,
    in_features: int | None = None,
    out_features: int | None = None,
) -> nn.Module:
    """A layer of that shape in the place of `dense`, with its bias or without, its device and dtype."""
    inputs = dense.in_features if in_features is None else in_features
    outputs = dense.out_features if out_features is None else out_features
    if not (1 <= inputs <= dense.in_features and 1 <= outputs <= dense.out_features):
        raise ValueError(
            f"config.compression makes {name!r} {outputs} × {inputs}, empty or larger than the dense layer's "
            f"{dense.out_features} × {dense.in_features}."
        )
    bias, device, dtype = dense.bias is not None, dense.weight.device, dense.weight.dtype
    if rank is None:
        return nn.Linear(inputs, outputs, bias, device, dtype)
    return FactoredLinear(inputs, outputs, rank, bias, device, dtype)


def holds_weights(name: str) -> bool:
    """Whether a file of that name is one of those that another save in other shards leaves behind."""
    return name == INDEX_FILE or WEIGHTS.fullmatch(name) is not None


def compressed_modules(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers, or pairs of them, that `config.compression["layers"]` of a factored model made."""
    found = []
    for name, shape in model.config.compression["layers"].items():
        path, module = cast(FactoredModelMixin, model)._find_layer(name)
        names = attention_names(type(module)) if "qk_rank" in shape else None
        children = [] if names is None else ["qk_down", names.query, names.key]
        found += [f"{path}.{child}" for child in children] or [path]
    return found


def attention_names(module_class: type[nn.Module]) -> Attention | None:
    """The entry of an attention class, dense or factored, in `ATTENTIONS`; `None` for every other class."""
    for base in module_class.__mro__:
        if (names := ATTENTIONS.get(_path_of(base))) is not None:
            return names
    return None


def _projections(module: nn.Module) -> set[str]:
    """What its queries, keys and values are called, if it is attention."""
    known = attention_names(type(module))
    return {part for names in ([known] if known else _USUAL) for part in (names.query, names.key, names.value)}


def _has_plain_queries(module: nn.Module) -> bool:
    """Whether it is an attention module whose queries and keys are not factored, each by itself."""
    names = attention_names(type(module)) or Attention()
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in (names.query, names.key))


def _share_down(attention: nn.Module, rank: int, layer: str) -> None:
    """Let queries and keys read the same `rank` projections of the hidden states."""
    names = attention_names(type(attention))
    if names is None:
        raise _unknown_attention(type(attention), layer)
    q: Any = getattr(attention, names.query)
    k: Any = getattr(attention, names.key)
    attention.qk_down = nn.Linear(q.in_features, rank, bias=False, device=q.weight.device, dtype=q.weight.dtype)
    for name, dense in ((names.query, q), (names.key, k)):
        narrow = nn.Linear(
            rank, dense.out_features, dense.bias is not None, device=dense.weight.device, dtype=dense.weight.dtype
        )
        setattr(attention, name, narrow)


def _unknown_attention(attention_class: type[nn.Module], layer: str) -> ValueError:
    return ValueError(
        f"config.compression gives {layer!r} a shape that {attention_class.__name__} cannot have: a qk_rank, other "
        "heads than all, or values of another head dimension than the queries. Its class is not in `ATTENTIONS`."
    )


_classes: dict[type, type] = {}
"""The factored class of each dense one."""
_public: dict[str, type] = {}
"""Dense class by the name that its factored one has in this module: `auto_map` and pickle know no other."""


def _made(dense: type, name: str, mixin: type, body: dict[str, Any]) -> type:
    """The factored class of `dense`, with that name.

    Raises:
        ValueError: the factored class of another dense one has that name.
    """
    for other in (_public.get(name), getattr(transformers, name.removeprefix("Factored"), None)):
        # A class that was defined once more, as in a notebook, takes the place of the former.
        if isinstance(other, type) and _path_of(other) != _path_of(dense):
            raise ValueError(
                f"{_path_of(dense)} and {_path_of(other)} would have factored classes of one name, {name}, by which "
                f"checkpoints find them. Rename the class {dense.__name__}."
            )
    _public[name] = dense
    _classes[dense] = type(name, (mixin, dense), {"__module__": __name__, **body})
    return _classes[dense]


def _path_of(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"


def dense_config_class(model_type: str) -> type[PreTrainedConfig]:
    """The config class of a model type, with `MODEL_TYPE_PREFIX` or without.

    Raises:
        KeyError: transformers does not know the type.
    """
    return CONFIG_MAPPING[model_type.removeprefix(MODEL_TYPE_PREFIX)]


def heads_of(model_type: str) -> dict[str, tuple[type[PreTrainedModel], ...]]:
    """Dense classes that each Auto class knows for a model type; where there are several, the first is the default."""
    config_class = dense_config_class(model_type)
    found = {}
    for name, auto_class in vars(modeling_auto).items():
        if name.startswith("Auto") and (mapping := getattr(auto_class, "_model_mapping", None)) is not None:
            classes = mapping.get(config_class, ())
            if classes and not name.endswith("Vision2Seq"):  # an old name of another one
                found[name] = tuple(classes) if isinstance(classes, list | tuple) else (classes,)
    return found


def factored_config_class(model_type: str) -> type[PreTrainedConfig]:
    """The config class of the factored form of `model_type`, e.g. `FactoredViTConfig` for `"vit"`.

    Raises:
        ValueError: another config class has its name, such as one from outside and one of transformers.
    """
    dense = dense_config_class(model_type)
    if dense not in _classes:
        body = {
            "__doc__": f"`{dense.__name__}` with `compression`, the shapes of the factored layers.",
            "__annotations__": {"compression": dict[str, Any] | None},
            "compression": None,
            "model_type": MODEL_TYPE_PREFIX + model_type,
        }
        return _made(dense, f"Factored{dense.__name__}", FactoredConfigMixin, body)
    return _classes[dense]


def factored_model_class(dense_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The factored form of a dense model class, e.g. `FactoredViTModel` for `ViTModel`.

    Raises:
        ValueError: another class has its name, such as one from outside and one of transformers.
    """
    if dense_class not in _classes:
        name = f"Factored{dense_class.__name__}"
        model_type = cast(Any, dense_class.config_class).model_type
        body = {
            "__doc__": f"`{dense_class.__name__}` in which the layers named by `config.compression` are factored.",
            "config_class": factored_config_class(model_type),
            "config": None,
        }
        _made(dense_class, name, FactoredModelMixin, body)
        # transformers finds the renaming of old checkpoints by names that ours have not.
        for known in (dense_class.__name__, model_type):
            mapping = conversion_mapping.get_checkpoint_conversion_mapping(known)
            if mapping is not None:
                conversion_mapping.register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
                break
    return _classes[dense_class]


def _attention_class(dense_class: type[nn.Module], layer: str) -> type[nn.Module]:
    """The factored form of an attention class.

    Raises:
        ValueError: its forward pass is another one than that of `FactoredAttentionMixin`.
    """
    if issubclass(dense_class, FactoredAttentionMixin):
        return dense_class
    names = attention_names(dense_class)
    if names is None:
        raise _unknown_attention(dense_class, layer)
    if dense_class not in _classes:
        module: Any = importlib.import_module(dense_class.__module__)
        body = {
            "__doc__": f"`{dense_class.__name__}` with what `FactoredAttentionMixin` adds.",
            "names": names,
            "eager_attention": staticmethod(module.eager_attention_forward),
            "rotate": staticmethod(vars(module).get("apply_rotary_pos_emb", _no_rotation)),
        }
        return _made(dense_class, _attention_name(_path_of(dense_class)), FactoredAttentionMixin, body)
    return _classes[dense_class]


def _attention_name(path: str) -> str:
    """What the factored form of the attention class at that path is called, everywhere the same.

    The class's own name is enough for those of transformers only; many others have the names of these.
    """
    module, _, name = path.rpartition(".")
    return f"Factored{name}" if module.startswith("transformers.") else f"Factored{name}_{module.replace('.', '_')}"


def _no_rotation(*_: Any) -> Any:
    raise NotImplementedError("This attention has no rotary position embeddings.")


def register(*model_types: str) -> None:
    """Register the factored classes of model types with the Auto classes; calling it again changes nothing."""
    for model_type in model_types:
        config_class = factored_config_class(model_type)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_name, dense_classes in heads_of(model_type).items():
            models = tuple(factored_model_class(dense) for dense in dense_classes)
            auto_class = getattr(modeling_auto, auto_name)
            # A tuple lets `config.architectures` choose, as transformers does for its own classes.
            auto_class._model_mapping.register(config_class, models if len(models) > 1 else models[0], exist_ok=True)


def __getattr__(name: str) -> type:
    """The factored classes by name, for `trust_remote_code`, for `from … import FactoredViTModel` and for pickle."""
    if name in _public:
        return _classes[_public[name]]
    dense = name.removeprefix("Factored")
    if dense != name:
        dense_class = getattr(transformers, dense, None)
        if isinstance(dense_class, type) and issubclass(dense_class, PreTrainedConfig):
            return factored_config_class(dense_class.model_type)
        if isinstance(dense_class, type) and issubclass(dense_class, PreTrainedModel):
            return factored_model_class(dense_class)
        for path in ATTENTIONS:
            if _attention_name(path) == name:
                return _attention_class(pkgutil.resolve_name(path), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
