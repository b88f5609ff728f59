"""Factored Vision Transformers: ordinary `transformers` models with smaller linear layers, or products of two of them.

This file needs torch and transformers only. It is copied beside every saved checkpoint, so that
`from_pretrained(folder, trust_remote_code=True)` works where the package is not installed.

For every dense class `X` in `FACTORED_ARCHITECTURES` there is a class `FactoredX(X)` and for its config a
`Factored<Config>`, made on first use by `factored_model_class` and `factored_config_class` and reachable as
attributes of this module. `register` hangs them on the Auto classes.
"""

import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import tempfile
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, conversion_mapping
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto import modeling_auto

MODEL_TYPE_PREFIX = "vitcompress_"

REMOTE_FILE = "modeling_factored.py"
CARD_FILE = "README.md"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""Names of the files that `from_pretrained` reads; others beside them, such as a moving average, are none of ours."""
HUB_SETTINGS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")

# A dense class that is pointed at a factored checkpoint would find none of the factored weights and start from
# random ones with nothing but a warning. On disk the config therefore carries this text in a field that every vision
# config declares as a float: the dense config class refuses it, and its error shows the text. The real value stays
# in `compression`; `FactoredConfigMixin.from_dict` puts it back.
GUARD_FIELD = "initializer_range"
GUARD_TEXT = (
    "This checkpoint has factored layers, which a dense model class cannot hold. Run `pip install hf-vitcompress`, "
    "then `import hf_vitcompress` and load it with an Auto class, or pass trust_remote_code=True to an Auto class."
)


class Architecture(NamedTuple):
    """The dense classes of one model type: where they live, and which Auto classes build them.

    `heads` maps an Auto class to its model classes; where there are several, `config.architectures` chooses and the
    first is the default. `attention` is the attention class, if its forward pass is the one that
    `FactoredAttentionMixin` has.
    """

    module: str
    config: str
    heads: dict[str, tuple[str, ...]]
    attention: str | None = None


FACTORED_ARCHITECTURES: dict[str, Architecture] = {
    "vit": Architecture(
        "transformers.models.vit",
        "ViTConfig",
        {
            "AutoModel": ("ViTModel",),
            "AutoModelForImageClassification": ("ViTForImageClassification",),
            "AutoModelForMaskedImageModeling": ("ViTForMaskedImageModeling",),
        },
        attention="ViTAttention",
    ),
    "deit": Architecture(
        "transformers.models.deit",
        "DeiTConfig",
        {
            "AutoModel": ("DeiTModel",),
            "AutoModelForImageClassification": (
                "DeiTForImageClassification",
                "DeiTForImageClassificationWithTeacher",
            ),
            "AutoModelForMaskedImageModeling": ("DeiTForMaskedImageModeling",),
        },
        attention="DeiTAttention",
    ),
}


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

    `qk_down (rank, d)`, where there is one, reads the hidden states for `q_proj (·, rank)` and `k_proj (·, rank)`. The
    number of heads is that of `q_proj`; each takes an equal part of what `v_proj` gives.
    """

    eager_attention: Any

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        matched = self.qk_down(hidden_states) if hasattr(self, "qk_down") else hidden_states
        query = self.q_proj(matched).view(*shape, -1, self.head_dim).transpose(1, 2)  # type: ignore[attr-defined]
        key = self.k_proj(matched).view(*shape, -1, self.head_dim).transpose(1, 2)  # type: ignore[attr-defined]
        value = self.v_proj(hidden_states).view(*shape, query.shape[1], -1).transpose(1, 2)  # type: ignore[attr-defined]
        value_dim, implementation = value.shape[-1], self.config._attn_implementation  # type: ignore[attr-defined]
        if implementation != "eager" and value_dim < self.head_dim:  # type: ignore[attr-defined]
            # Fused kernels want one head dimension for all; zeros in the values are zeros in the output.
            value = functional.pad(value, (0, self.head_dim - value_dim))  # type: ignore[attr-defined]
        output, weights = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, type(self).eager_attention)(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,  # type: ignore[attr-defined]
            scaling=self.scaling,  # type: ignore[attr-defined]
            **kwargs,
        )
        return self.o_proj(output[..., :value_dim].reshape(*shape, -1)), weights  # type: ignore[attr-defined]


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
        if config_dict.get(GUARD_FIELD) == GUARD_TEXT:
            compression = dict(config_dict["compression"])
            config_dict = {**config_dict, GUARD_FIELD: compression.pop(GUARD_FIELD), "compression": compression}
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """Write `config.json`, with the guard against dense classes and the way to the code beside it."""
        content = json.loads(self.to_json_string(use_diff=use_diff))  # type: ignore[attr-defined]
        content["compression"] = {**(content.get("compression") or {}), GUARD_FIELD: content[GUARD_FIELD]}
        content[GUARD_FIELD] = GUARD_TEXT
        content["auto_map"] = self._auto_map()
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2, sort_keys=True) + "\n")

    def _auto_map(self) -> dict[str, str]:
        module = REMOTE_FILE.removesuffix(".py")
        auto_map = {"AutoConfig": f"{module}.{type(self).__name__}"}
        heads = FACTORED_ARCHITECTURES[self.model_type.removeprefix(MODEL_TYPE_PREFIX)].heads  # type: ignore[attr-defined]
        for auto_class, dense_names in heads.items():
            names = [f"Factored{name}" for name in dense_names]
            chosen = [name for name in names if name in (self.architectures or [])]  # type: ignore[attr-defined]
            auto_map[auto_class] = f"{module}.{(chosen or names)[0]}"
        return auto_map


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
        parents = {}
        for name, shape in layers.items():
            module_name, module = self._find_layer(name)
            known = isinstance(shape, dict) and bool(shape)
            if known and isinstance(module, nn.Linear) and set(shape) <= {"rank", "in_features", "out_features"}:
                self.set_submodule(module_name, _resized(name, module, **shape))  # type: ignore[attr-defined]
                parents[module_name.rpartition(".")[0]] = name
            elif known and set(shape) == {"qk_rank"} and shape["qk_rank"] > 0 and _has_plain_queries(module):
                _share_down(module, shape["qk_rank"])
                parents[module_name] = name
            else:
                raise ValueError(
                    f"config.compression gives {name!r}, a {type(module).__name__} in {type(self).__name__}, the shape "
                    f"{shape!r}. An nn.Linear has a rank, in_features or out_features, attention has a qk_rank."
                )
        for parent, name in parents.items():
            attention = self.get_submodule(parent)  # type: ignore[attr-defined]
            if hasattr(attention, "v_proj") and _is_unusual(attention):
                attention.__class__ = _attention_class(type(attention), name)

    def _find_layer(self, name: str) -> tuple[str, nn.Module]:
        prefix = f"{self.base_model_prefix}."  # type: ignore[attr-defined]
        for candidate in (name, name.removeprefix(prefix), prefix + name):
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


def compressed_modules(layers: dict[str, dict[str, int]]) -> list[str]:
    """Names of the linear layers, or pairs of them, that `config.compression["layers"]` makes."""
    names = []
    for name, shape in layers.items():
        names += [f"{name}.{child}" for child in ("qk_down", "q_proj", "k_proj")] if "qk_rank" in shape else [name]
    return names


def _has_plain_queries(module: nn.Module) -> bool:
    """Whether it is an attention module whose queries and keys are not factored, each by itself."""
    return all(isinstance(getattr(module, name, None), nn.Linear) for name in ("q_proj", "k_proj"))


def _share_down(attention: nn.Module, rank: int) -> None:
    """Let queries and keys read the same `rank` projections of the hidden states."""
    q: Any = attention.q_proj
    k: Any = attention.k_proj
    attention.qk_down = nn.Linear(q.in_features, rank, bias=False, device=q.weight.device, dtype=q.weight.dtype)
    for name, dense in (("q_proj", q), ("k_proj", k)):
        narrow = nn.Linear(
            rank, dense.out_features, dense.bias is not None, device=dense.weight.device, dtype=dense.weight.dtype
        )
        setattr(attention, name, narrow)


def _is_unusual(attention: Any) -> bool:
    """Whether the dense class's forward pass does not know what to do with it."""
    return hasattr(attention, "qk_down") or attention.v_proj.out_features != attention.q_proj.out_features


_classes: dict[str, type] = {}


def factored_config_class(model_type: str) -> type[PreTrainedConfig]:
    """The config class of the factored form of `model_type`, e.g. `FactoredViTConfig` for `"vit"`."""
    architecture = FACTORED_ARCHITECTURES[model_type]
    name = f"Factored{architecture.config}"
    if name not in _classes:
        dense = getattr(importlib.import_module(architecture.module), architecture.config)
        body = {
            "__module__": __name__,
            "__doc__": f"`{dense.__name__}` with `compression`, the shapes of the factored layers.",
            "__annotations__": {"compression": dict[str, Any] | None},
            "compression": None,
            "model_type": MODEL_TYPE_PREFIX + model_type,
        }
        _classes[name] = type(name, (FactoredConfigMixin, dense), body)
    return _classes[name]


def factored_model_class(dense_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The factored form of a dense model class, e.g. `FactoredViTModel` for `ViTModel`.

    Raises:
        KeyError: the class is not in `FACTORED_ARCHITECTURES`.
    """
    name = f"Factored{dense_class.__name__}"
    if name not in _classes:
        model_type = _model_type_of(dense_class.__name__)
        config_class = factored_config_class(model_type)
        body = {
            "__module__": __name__,
            "__doc__": f"`{dense_class.__name__}` in which the layers named by `config.compression` are factored.",
            "config_class": config_class,
            "config": None,
        }
        _classes[name] = type(name, (FactoredModelMixin, dense_class), body)
        mapping = conversion_mapping.get_checkpoint_conversion_mapping(dense_class.__name__)
        if mapping is not None:
            # transformers finds the renaming of old checkpoints by class name; ours has another one.
            conversion_mapping.register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
    return _classes[name]


def _attention_class(dense_class: type[nn.Module], layer: str) -> type[nn.Module]:
    """The factored form of an attention class.

    Raises:
        ValueError: its forward pass is another one than that of `FactoredAttentionMixin`.
    """
    name = dense_class.__name__
    if name not in {architecture.attention for architecture in FACTORED_ARCHITECTURES.values()}:
        raise ValueError(
            f"config.compression gives {layer!r} a shape that {name} cannot have: a qk_rank, or values of another "
            "head dimension than the queries."
        )
    if f"Factored{name}" not in _classes:
        body = {
            "__module__": __name__,
            "__doc__": f"`{name}` with what `FactoredAttentionMixin` adds.",
            "eager_attention": staticmethod(importlib.import_module(dense_class.__module__).eager_attention_forward),
        }
        _classes[f"Factored{name}"] = type(f"Factored{name}", (FactoredAttentionMixin, dense_class), body)
    return _classes[f"Factored{name}"]


def _model_type_of(class_name: str) -> str:
    for model_type, architecture in FACTORED_ARCHITECTURES.items():
        if any(class_name in classes for classes in architecture.heads.values()):
            return model_type
    raise KeyError(class_name)


def register() -> None:
    """Register every factored config and model class with the Auto classes; calling it again changes nothing."""
    for model_type, architecture in FACTORED_ARCHITECTURES.items():
        config_class = factored_config_class(model_type)
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        module = importlib.import_module(architecture.module)
        for auto_name, class_names in architecture.heads.items():
            models = tuple(factored_model_class(getattr(module, name)) for name in class_names)
            auto_class = getattr(modeling_auto, auto_name)
            # A tuple lets `config.architectures` choose, as transformers does for its own classes.
            auto_class._model_mapping.register(config_class, models if len(models) > 1 else models[0], exist_ok=True)


def __getattr__(name: str) -> type:
    """The factored classes by name, for `trust_remote_code`, for `from … import FactoredViTModel` and for pickle."""
    dense = name.removeprefix("Factored")
    for model_type, architecture in FACTORED_ARCHITECTURES.items() if dense != name else ():
        if dense == architecture.config:
            return factored_config_class(model_type)
        module = importlib.import_module(architecture.module)
        if any(dense in names for names in architecture.heads.values()):
            return factored_model_class(getattr(module, dense))
        if dense == architecture.attention:
            modeling = importlib.import_module(getattr(module, architecture.heads["AutoModel"][0]).__module__)
            return _attention_class(getattr(modeling, dense), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
