"""What calibration measures: streaming second moments, kept only on the narrow side of each layer.

A layer `y = W x + b` of shape (out, in) enters the closed forms (see `factorization`) through two matrices on its
*narrow* side, of size min(in, out)²:

* out ≤ in: the gradient moment `G = E_image[Σ_tokens g gᵀ]`, and the covariance of the output, `W C Wᵀ`;
* in < out: the covariance `C` of the input, and the moment of the gradient carried to the input, `Wᵀ G W`.

Without pruning the wide moments (1536² instead of 384² in a ViT-S) are never formed: they would be four fifths of the
arithmetic. Where hidden features may be pruned, their own moments take the place of the narrow ones: the covariance of
fc2's input and the gradient moments at the outputs of fc1 and, where there is one, of the gate. A square layer keeps
`C` and `G` themselves, as do queries and keys that may share a factor, of which one reads all of `C`. Layers that read
the same tensor share one `C`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from accelerate import Accelerator
from torch import Tensor

from ..architectures.layers import LayerInfo
from ..errors import CalibrationError
from ..runtime.distributed import from_owner, gather_objects, sum_in_place, sum_numbers
from ..runtime.identity import SETTINGS, Identity, facts_of
from .identity import weights_in
from .loss_correction import LossCorrection
from .moments import GradientMoment, Moment
from .sealed_file import damaged, read_sealed, write_sealed


@dataclass(frozen=True)
class Merging:
    """What merged tokens were measured to lose.

    Attributes:
        tokens: block's module name → how many tokens it merges, as in `config.compression["tokens"]`.
        loss: divergence from the dense model, nats per image, with the dense model's weights.
    """

    tokens: dict[str, int]
    loss: float


@dataclass
class Statistics:
    """Everything calibration learnt about a model; one serves any number of budgets.

    Attributes:
        inputs: by input name, moments of what the layers read; (in, in), or the mean only where nothing more
            is needed.
        outputs: by layer name, moments of `W x + b`, for layers with out < in whose inputs have no (in, in).
        gradients: by layer name, gradient moments at the output, or at the input where that is narrower and enough;
            empty where no metric needs them.
        images: images seen.
        tokens: vectors seen by each input name.
        bad_images: images that could not be read and were left out.
        settings: what the statistics depend on (metric, seed, precision, …) and `image_shape`, plain data.
        identity: what they were made from: the model's weights and config, the image processor, the images and the
            version of this package, as digests and short texts.
        corrections: of the predicted losses, by `selection.selection_method`, once they are measured.
        merging: losses of merged tokens, once they are measured.
        timing: seconds by stage, plain data.
        solutions: what the planner's groups of layers have solved from these moments, by what it depends on; kept in
            memory, so that further budgets take seconds, and not saved.
    """

    inputs: dict[str, Moment] = field(default_factory=dict)
    outputs: dict[str, Moment] = field(default_factory=dict)
    gradients: dict[str, GradientMoment] = field(default_factory=dict)
    images: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    bad_images: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    identity: Identity = field(default_factory=dict)
    corrections: dict[str, LossCorrection] = field(default_factory=dict)
    merging: list[Merging] = field(default_factory=list)
    timing: dict[str, float] = field(default_factory=dict)
    solutions: dict[str, list[Any]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """Of one image's `pixel_values`, by which costs are counted; `None` in statistics from before it was noted."""
        shape = self.settings.get("image_shape")
        return None if shape is None else tuple(shape)

    @property
    def weights(self) -> str:
        """Digest of the model's class and all its weights, by name; see `weights.model_digest`."""
        return weights_in(self.identity)

    @property
    def made_from(self) -> Identity:
        """`identity` and the settings; images go by their content and not by their names."""
        named = {name: value for name, value in self.settings.items() if name not in ("data", "dataset", "split")}
        return {**{kind: dict(facts) for kind, facts in self.identity.items()}, SETTINGS: facts_of(named)}

    @property
    def is_complete(self) -> bool:
        """Whether every image has been seen."""
        seen = self.images + self.bad_images
        return seen == self.settings.get("images", seen)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file with a checksum, beside the target first and then renamed."""
        tensors = {
            f"{kind}/{name}/{f.name}": tensor.cpu().contiguous()
            for kind in _KINDS
            for name, moment in getattr(self, kind).items()
            for f in fields(moment)
            if (tensor := getattr(moment, f.name)) is not None
        }
        plain = {name: getattr(self, name) for name in PLAIN}
        plain["corrections"] = {method: asdict(correction) for method, correction in self.corrections.items()}
        plain["merging"] = [asdict(measured) for measured in self.merging]
        write_sealed(path, tensors, plain)

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """The reverse of `save`.

        Raises:
            CalibrationError: the file is missing, damaged, edited or something else.
        """
        tensors, plain = read_sealed(path)
        try:
            for method, correction in plain["corrections"].items():
                points = [(float(predicted), float(measured)) for predicted, measured in correction["points"]]
                plain["corrections"][method] = LossCorrection(**{**correction, "points": points})
            moments: dict[str, Any] = {kind: _moments_from(tensors, kind, make) for kind, make in _KINDS.items()}
            values = {name: plain[name] for name in PLAIN}
            values["merging"] = [Merging(dict(one["tokens"]), float(one["loss"])) for one in plain.get("merging", [])]
            _check_forms(values, PLAIN)
            _check_forms(values["settings"], SETTING_FORMS)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(path, f"{type(error).__name__}: {error}") from error
        return cls(**moments, **values)

    def to(self, device: torch.device) -> "Statistics":
        """Move all moments to `device`, in place."""
        for kind in _KINDS:
            for moment in getattr(self, kind).values():
                for name, value in vars(moment).items():
                    setattr(moment, name, None if value is None else value.to(device))
        return self

    def sum_over_processes(self, accelerator: Accelerator) -> None:
        """Replace what this process has seen by what all have: one sum of the moments, no images and no activations.

        All processes get the same moments, about the shift of the first of them that has seen an image.
        """
        if accelerator.num_processes == 1:
            return
        seen = gather_objects(accelerator, self.images)
        owner = next((process for process, images in enumerate(seen) if images), 0)
        # In the order of their names, since those read from a file come in another one.
        for moments in (self.inputs, self.outputs):
            for _, moment in sorted(moments.items()):
                moment.reshift(from_owner(accelerator, moment.shift, owner))
                sum_in_place(accelerator, [t for t in (moment.weight, moment.first, moment.second) if t is not None])
        for _, gradient in sorted(self.gradients.items()):
            sum_in_place(accelerator, [gradient.count, gradient.second])
        names = sorted(self.inputs)
        counts = [self.images, self.bad_images, *(self.tokens.get(name, 0) for name in names)]
        images, bad_images, *tokens = (round(count) for count in sum_numbers(accelerator, counts))
        self.images, self.bad_images = images, bad_images
        self.tokens = dict(zip(names, tokens, strict=True))

    def clear(self) -> None:
        """Nothing seen, so that a sum over processes counts what was summed before only once."""
        for kind in _KINDS:
            for moment in getattr(self, kind).values():
                moment.clear()
        self.images, self.bad_images, self.tokens = 0, 0, {}

    @property
    def bytes_by_layer(self) -> dict[str, int]:
        """Bytes of the moments by input, output or layer name: what one sum over processes moves."""
        sizes: dict[str, int] = {}
        for kind in _KINDS:
            for name, moment in getattr(self, kind).items():
                tensors = [tensor for tensor in vars(moment).values() if tensor is not None]
                sizes[f"{kind}/{name}"] = sum(tensor.nbytes for tensor in tensors)
        return sizes

    def check_layers(self, layers: Iterable[LayerInfo]) -> None:
        """Refuse layers these statistics do not cover, and moments that are not those of such layers.

        Raises:
            CalibrationError: naming the first such layer.
        """
        collected = self.settings.get("layers")
        for layer in layers:
            if layer.input_name not in self.inputs or (collected is not None and layer.name not in collected):
                raise CalibrationError(
                    f"The statistics hold nothing about {layer.name!r}. They were collected from another model, or "
                    "with other target_modules; calibrate this one."
                )
            moments = self.inputs[layer.input_name], self.outputs.get(layer.name), self.gradients.get(layer.name)
            sizes = {layer.in_features}, {layer.out_features}, {layer.in_features, layer.out_features}
            for moment, own in zip(moments, sizes, strict=True):
                if moment is not None and (moment.size not in own or not moment.is_finite()):
                    raise CalibrationError(
                        f"What the statistics hold about {layer.name!r} (in, out = {layer.in_features}, "
                        f"{layer.out_features}) has another size or is not finite. They were changed after they were "
                        "collected; calibrate again."
                    )


PLAIN: dict[str, Any] = {
    "images": int,
    "tokens": dict[str, int],
    "bad_images": int,
    "settings": dict[str, Any],
    "identity": dict[str, dict[str, str]],
    "corrections": dict[str, Any],
    "timing": dict[str, float],
}
"""Attributes that are plain data, and their types."""

SETTING_FORMS: dict[str, Any] = {
    "images": int,
    "layers": list[str],
    "prunable_inputs": list[str],
    "image_shape": list[int],
    "left_out": list[int],
}
"""The settings that are more than compared, and their types."""

_KINDS: dict[str, type[Moment] | type[GradientMoment]] = {
    "inputs": Moment,
    "outputs": Moment,
    "gradients": GradientMoment,
}


def _moments_from(tensors: dict[str, Tensor], kind: str, make: type[Moment] | type[GradientMoment]) -> dict[str, Any]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        own, name, part = key.split("/")
        if own == kind:
            found.setdefault(name, {})[part] = tensor
    return {name: make.from_parts(parts) for name, parts in found.items()}


def _check_forms(values: dict[str, Any], forms: dict[str, Any]) -> None:
    for name, value in values.items():
        if name in forms and not _fits(value, forms[name]):
            raise TypeError(f"{name} is not a {forms[name]}")


def _fits(value: Any, form: Any) -> bool:
    inner = get_args(form)
    if inner:
        values = value.values() if isinstance(value, dict) else value
        return isinstance(value, get_origin(form) or form) and all(_fits(one, inner[-1]) for one in values)
    return form is Any or isinstance(value, (int, float) if form is float else form)
