"""Feature maps of timm's models, as a backbone of `transformers` that a config describes wholly.

This file needs torch, transformers and timm. It is copied beside every saved checkpoint of a timm model, with
`modeling_timm.py`.
"""

import copy
import re
from collections.abc import Collection
from typing import Any, cast

from torch import Tensor
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.models.timm_wrapper import modeling_timm_wrapper
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperPreTrainedModel
from transformers.utils import requires_backends
from transformers.utils.generic import can_return_tuple

from .configuration_timm import TimmViTConfig


class FusedTimmBackbone(BackboneMixin, TimmWrapperPreTrainedModel):
    """What `TimmBackbone` of transformers computes, from timm's module under the names that it has in `TimmWrapper`.

    Like timm's feature extractors it has no head and no layers after the last map. It opens the folder of a whole
    model, too: what it has no use for is left out.
    """

    config_class = TimmViTConfig

    def __init__(self, config: TimmViTConfig) -> None:
        requires_backends(self, ["vision", "timm"])
        timm = cast(Any, modeling_timm_wrapper).timm  # imported by transformers
        module = timm.create_model(config.architecture, num_classes=config.num_labels, **(config.model_args or {}))
        before = dict(module.named_modules())
        stages, indices = _stages(config, module)
        module.reset_classifier(0)
        if hasattr(module, "prune_intermediate_layers"):
            module.prune_intermediate_layers(indices, prune_norm=True)
        after = dict(module.named_modules())
        gone = [name for name, part in before.items() if type(after.get(name)) is not type(part)]
        config = _without_layers(config, gone)
        config.stage_names = [stage["module"] for stage in stages]
        config.set_output_features_output_indices(None, indices)
        config.last_stage = max(indices)
        super().__init__(config)
        self.num_features = [stage["num_chs"] for stage in stages]
        self.timm_model = module
        self._keys_to_ignore_on_load_unexpected = [rf"^timm_model\.{re.escape(name)}\." for name in gone]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Feature maps (n, channels, height, width) of the stages in `out_indices`, as they leave these.

        Args:
            pixel_values: (n, channels, height, width).
            output_hidden_states: whether to return the maps of the stages before and between them, too.

        Raises:
            ValueError: attentions are asked for, which timm does not give.
        """
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("Cannot set `output_attentions` for timm models.")
        indices: list[int] = list(self.out_indices)
        every = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        maps = self.timm_model.forward_intermediates(
            pixel_values.to(self.device, self.dtype),
            indices=list(range(indices[-1] + 1)) if every else indices,
            norm=False,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        chosen = [maps[index] for index in indices] if every else maps
        return BackboneOutput(feature_maps=tuple(chosen), hidden_states=tuple(maps) if every else None)


def _stages(config: TimmViTConfig, module: Any) -> tuple[list[dict[str, Any]], list[int]]:
    """What timm says of each stage, and which of them give their maps, the last one by default.

    Raises:
        ValueError: timm makes no feature maps of the model, or it has no such stage.
    """
    stages: list[dict[str, Any]] = list(getattr(module, "feature_info", ()))
    if not stages or not hasattr(module, "forward_intermediates"):
        raise ValueError(f"timm makes no feature maps of {config.architecture}, so that it cannot be a backbone.")
    if config.out_indices is not None:
        if wrong := [index for index in config.out_indices if not -len(stages) <= index < len(stages)]:
            raise ValueError(f"out_indices holds {wrong[0]}, and {config.architecture} has {len(stages)} stages.")
        return stages, [index % len(stages) for index in config.out_indices]
    if config.out_features is None:
        return stages, [len(stages) - 1]
    names = [stage["module"] for stage in stages]
    if unknown := [name for name in config.out_features if name not in names]:
        raise ValueError(f"out_features names {unknown[0]!r}; {config.architecture} has {', '.join(names)}.")
    return stages, [names.index(name) for name in config.out_features]


def _without_layers(config: TimmViTConfig, gone: Collection[str]) -> TimmViTConfig:
    """The config without the shapes of compressed layers that are in these modules of timm's."""
    compression = getattr(config, "compression", None) or {}
    layers, prefixes = compression.get("layers"), tuple(f"timm_model.{name}." for name in gone)
    if not isinstance(layers, dict) or not any(f"{layer}.".startswith(prefixes) for layer in layers):
        return config
    fewer = copy.deepcopy(config)
    kept = {layer: shape for layer, shape in layers.items() if not f"{layer}.".startswith(prefixes)}
    fewer.compression = {**compression, "layers": kept}
    return fewer


def check_holds(model: object, config: TimmViTConfig) -> None:
    """That a config is for a model of that kind.

    Raises:
        ValueError: it is that of a headless model or of a backbone, and the model has what those lack.
    """
    if isinstance(model, FusedTimmBackbone):
        return
    if any(name.endswith("TimmViTBackbone") for name in config.architectures or ()):
        raise ValueError(
            "This model is a backbone, without the layers after its last feature map: load it with AutoModel or "
            "AutoBackbone."
        )
    if not config.num_labels and type(model).__name__.endswith("ForImageClassification"):
        raise ValueError("This model has no classifier: load it with AutoModel, or give num_labels for a new one.")
