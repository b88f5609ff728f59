"""Factored Vision Transformers: ordinary `transformers` models with smaller linear layers, or products of two of them.

This file needs torch and transformers only. It is copied beside every saved checkpoint, with
`configuration_factored.py`, `layers_factored.py` and `tokens_factored.py`, so that
`from_pretrained(folder, trust_remote_code=True)` works where the package is not installed.

For any model class `X` of transformers, or one that is registered with its Auto classes, there is a class
`FactoredX(X)` and for its config a `Factored<Config>`, made on first use by `factored_model_class` and
`factored_config_class` and reachable as attributes of this module.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, conversion_mapping
from transformers.models.auto import modeling_auto

from . import configuration_factored, layers_factored, tokens_factored
from .configuration_factored import (
    FACTORED,
    MODEL_TYPE_PREFIX,
    OWN_TYPES,
    PUBLIC,
    factored_config_class,
    heads_of,
    made_class,
    travelling_files,
)
from .layers_factored import (
    Constant,
    Removed,
    attention_class,
    attention_names,
    has_plain_queries,
    projections,
    resized,
    share_down,
)
from .tokens_factored import merge_tokens, merged_names

CARD_FILE = "README.md"

CONFIG_FILE = "config.json"

MANIFEST_FILE = ".vitcompress-files.json"
"""Names and digests of what the package wrote into a folder."""

READY = ".vitcompress-ready"
"""Folder in a folder whose files the package is replacing by those in it."""

TRAINER_FILE = "training_args.bin"

INDEX_FILE = "model.safetensors.index.json"

WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
"""Names of the files that `from_pretrained` reads; others beside them, such as a moving average, are none of ours."""

HUB_SETTINGS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


class FactoredModelMixin:
    """Replaces, after the dense class has built itself, the modules that `config.compression` names.

    Attributes:
        companions: objects whose `save_pretrained(folder)` is called when the model is saved, such as its image
            processor.
        stored_dtype: narrower type in which the weights are stored where that loses nothing; `None`: their own.
    """

    stored_dtype: torch.dtype | None = None

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        self.companions: list[Any] = []
        self._resize_layers()
        merge_tokens(self.find_layer, self, self._compression("tokens"))  # type: ignore[arg-type]
        # A second time: the first saw the dense layers.
        self.post_init()  # type: ignore[attr-defined]
        self._no_split_modules: set[str] = {*(self._no_split_modules or ()), *merged_names(self)}

    def _compression(self, key: str) -> dict[str, Any]:
        entries = (getattr(self.config, "compression", None) or {}).get(key, {})  # type: ignore[attr-defined]
        if not isinstance(entries, dict):
            wanted = "layers to shapes" if key == "layers" else "blocks to numbers of tokens"
            raise ValueError(f"config.compression[{key!r}] is a {type(entries).__name__}; it maps {wanted}.")
        return entries

    def _resize_layers(self) -> None:
        narrowed = {}
        for name, shape in self._compression("layers").items():
            module_name, module = self.find_layer(name)
            known = isinstance(shape, dict) and bool(shape) and all(type(size) is int for size in shape.values())
            if known and isinstance(module, nn.Linear) and set(shape) <= {"rank", "in_features", "out_features"}:
                self.set_submodule(module_name, resized(name, module, **shape))  # type: ignore[attr-defined]
                parent, _, child = module_name.rpartition(".")
                # Of anything else in that module, such as a feed-forward beside the projections, attention is none.
                if "out_features" in shape and child in projections(self.get_submodule(parent)):  # type: ignore[attr-defined]
                    narrowed[parent] = name
            elif known and set(shape) == {"qk_rank"} and shape["qk_rank"] > 0 and has_plain_queries(module):
                share_down(module, shape["qk_rank"], name)
                narrowed[module_name] = name
            else:
                raise ValueError(
                    f"config.compression gives {name!r}, a {type(module).__name__} in {type(self).__name__}, the shape "
                    f"{shape!r}. An nn.Linear has a rank, in_features or out_features, attention has a qk_rank."
                )
        for parent, name in narrowed.items():
            attention = self.get_submodule(parent)  # type: ignore[attr-defined]
            attention.__class__ = attention_class(type(attention), name)
        if any(0 in shape.values() for shape in self._compression("layers").values()):
            _check_removed(cast(nn.Module, self))

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """As in transformers, which does not know a `Constant`: one that a checkpoint lacks is zero."""
        modules = cast(nn.Module, self).modules()
        constants = [own for own in modules if isinstance(own, Constant) and not _has_values(own)]
        super().initialize_weights()  # type: ignore[misc]
        for constant in constants:
            constant.bias.zero_()

    def find_layer(self, name: str) -> tuple[str, nn.Module]:
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

        Everything is written to a folder of its own first and then moved in. An interruption at any moment leaves the
        old checkpoint, the new one, or one without `config.json`, which does not load until it is saved again. Other
        files of the folder stay as they are.
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
            self.save_pretrained(target, *args, **kwargs)
            self.publish(target, settings.pop("repo_id", os.path.basename(target)), **settings)
            return
        quantized = getattr(self, "hf_quantizer", None) is not None  # which writes its own types
        if self.stored_dtype is not None and not quantized and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = narrowed_state(self.state_dict(), self.stored_dtype)  # type: ignore[attr-defined]
        with self.replacing(target) as staging:
            super().save_pretrained(staging, *args, **kwargs)  # type: ignore[misc]
            for name in travelling_files(self.config.model_type):  # type: ignore[attr-defined]
                shutil.copyfile(os.path.join(os.path.dirname(__file__), name), os.path.join(staging, name))
            for companion in self.companions:
                companion.save_pretrained(staging)

    @contextlib.contextmanager
    def replacing(self, target: str) -> Iterator[str]:
        """Yield a folder for new files, and move them into `target` when the block ends well.

        The card that is there is in that folder, too, so that companions can renew a part of it.
        """
        os.makedirs(target, exist_ok=True)
        _refuse_other_model(target)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as staging:
            card = os.path.join(target, CARD_FILE)
            if os.path.isfile(card) and not os.path.islink(card):  # a link may lead to what is not for others
                shutil.copyfile(card, os.path.join(staging, CARD_FILE))
            yield staging
            written = [
                os.path.relpath(os.path.join(root, n), staging) for root, _, names in os.walk(staging) for n in names
            ]
            # The config goes first and comes last: without it the folder does not load.
            for name in (CONFIG_FILE, MANIFEST_FILE, *filter(holds_weights, os.listdir(target))):
                if name not in written or not holds_weights(name):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.join(target, name))
            shutil.rmtree(os.path.join(target, READY), ignore_errors=True)
            for name in sorted(written, key=lambda name: name == CONFIG_FILE):
                os.makedirs(os.path.dirname(os.path.join(target, name)), exist_ok=True)
                os.replace(os.path.join(staging, name), os.path.join(target, name))

    def publish(self, folder: str, repo_id: str, **settings: Any) -> None:
        """Publish what was saved to `folder`: here as transformers does it, from the model."""
        self.push_to_hub(repo_id, **settings)  # type: ignore[attr-defined]


def _has_values(constant: Constant) -> bool:
    """Whether transformers has loaded it or initialized it before."""
    return any(getattr(own, "_is_hf_initialized", False) for own in (constant, constant.bias))


def narrowed_state(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors in a narrower type; as they are if any of them would change by that. Shared ones stay so."""
    narrowed: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in state.values():
        wide = tensor.is_floating_point() and tensor.element_size() > dtype.itemsize
        stored = tensor.to(dtype) if wide else tensor
        if wide and not torch.equal(stored.to(tensor.dtype), tensor):
            return state
        narrowed.setdefault((tensor.data_ptr(), tensor.shape), stored)
    return {name: narrowed[tensor.data_ptr(), tensor.shape] for name, tensor in state.items()}


def _refuse_other_model(folder: str) -> None:
    """A Trainer replaces what it has saved to its own folder; nobody else's model is replaced."""
    config = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(config) or os.path.exists(os.path.join(folder, TRAINER_FILE)):
        return
    with open(config, encoding="utf-8") as file:
        if f'"{MODEL_TYPE_PREFIX}' not in file.read():
            raise FileExistsError(f"{folder!r} holds another model. Choose another folder, or remove that model first.")


def holds_weights(name: str) -> bool:
    """Whether a file of that name is one of those that another save in other shards leaves behind."""
    return name == INDEX_FILE or WEIGHTS.fullmatch(name) is not None


def _check_removed(model: nn.Module) -> None:
    """Refuse a model in which a part of a module is removed, and not the whole.

    Raises:
        ValueError: naming it.
    """
    constants = {_block_of(name) for name, module in model.named_modules() if isinstance(module, Constant)}
    for name, module in model.named_modules():
        removed = [child for child in projections(module) if isinstance(getattr(module, child, None), Removed)]
        if isinstance(module, Removed) and _block_of(name) not in constants:
            raise ValueError(f"config.compression removes {name!r}, and not what reads it: give that in_features 0.")
        if not removed:
            continue
        names = attention_names(type(module))
        if names is None or getattr(module, "shapes_itself", False):
            raise ValueError(
                f"config.compression removes layers of {name!r}, a {type(module).__name__}, which cannot go."
            )
        parts = [getattr(module, child, None) for child in (names.query, names.key, names.value)]
        output = None if names.output is None else getattr(module, names.output)
        whole = all(isinstance(part, Removed) for part in parts) and isinstance(output, Constant | None)
        if not whole or hasattr(module, "qk_down"):
            raise ValueError(
                f"config.compression removes a part of {name!r}: its queries, keys and values go together, and what "
                "reads them has in_features 0."
            )


def _block_of(name: str) -> str:
    """The name up to its last number: of the block that a module is in."""
    parts = name.split(".")
    return ".".join(parts[: max((i + 1 for i, part in enumerate(parts) if part.isdecimal()), default=0)])


def compressed_modules(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers, or pairs of them, that `config.compression["layers"]` of a factored model made."""
    found = []
    for name, shape in model.config.compression["layers"].items():
        path, module = cast(FactoredModelMixin, model).find_layer(name)
        names = attention_names(type(module)) if "qk_rank" in shape else None
        children = [] if names is None else ["qk_down", names.query, names.key]
        found += [f"{path}.{child}" for child in children] or [path]
    return found


def factored_model_class(dense_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The factored form of a dense model class, e.g. `FactoredViTModel` for `ViTModel`.

    Raises:
        ValueError: another class has its name, such as one from outside and one of transformers.
    """
    if dense_class not in FACTORED:
        name = f"Factored{dense_class.__name__}"
        model_type = cast(Any, dense_class.config_class).model_type
        body = {
            "__doc__": f"`{dense_class.__name__}` in which the layers named by `config.compression` are factored.",
            "config_class": factored_config_class(model_type),
            "config": None,
        }
        package_mixin = configuration_factored.package_mixin
        mixin = FactoredModelMixin if package_mixin is None else package_mixin()
        made_class(dense_class, mixin, name, __name__, body)
        # transformers finds the renaming of old checkpoints by names that ours have not.
        for known in (dense_class.__name__, model_type):
            mapping = conversion_mapping.get_checkpoint_conversion_mapping(known)
            if mapping is not None:
                conversion_mapping.register_checkpoint_conversion_mapping(name, mapping, overwrite=True)
                break
        _make_known_to_pipelines(dense_class, name, model_type)
    return FACTORED[dense_class]


def _make_known_to_pipelines(dense_class: type[PreTrainedModel], name: str, model_type: str) -> None:
    """Write the name of a factored class beside that of the dense one, where pipelines read which classes they take.

    Some read a copy of these tables, which lacks what is registered with an Auto class.
    """
    for auto_name, dense_classes in heads_of(model_type).items():
        if dense_class in dense_classes:
            names = getattr(modeling_auto, auto_name)._model_mapping._model_mapping
            key = MODEL_TYPE_PREFIX + model_type
            names[key] = (*(known for known in names.get(key, ()) if known != name), name)


def _own_class(factored: str) -> type[PreTrainedModel] | None:
    """The dense class of a model type of this package whose factored one has that name."""
    for model_type, own in OWN_TYPES.items():
        for auto_name, names in own.heads.items():
            if factored in (f"Factored{name}" for name in names):
                known = heads_of(model_type)[auto_name]
                return next(dense for dense in known if factored == f"Factored{dense.__name__}")
    return None


def __getattr__(name: str) -> type:
    """The factored classes by name, for `trust_remote_code`, for `from … import FactoredViTModel` and for pickle."""
    if name in PUBLIC:
        return FACTORED[PUBLIC[name]]
    dense = getattr(transformers, name.removeprefix("Factored"), None) if name.startswith("Factored") else None
    if isinstance(dense, type) and issubclass(dense, PreTrainedModel):
        return factored_model_class(dense)
    if (own := _own_class(name)) is not None:
        return factored_model_class(own)
    # Checkpoints and pickles of old name this file for all.
    for module in (configuration_factored, layers_factored, tokens_factored):
        if (found := getattr(module, name, None)) is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
