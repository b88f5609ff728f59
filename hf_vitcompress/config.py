"""What the user asks for: `CompressionConfig` and its presets."""

import difflib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from .durations import Duration
from .errors import ConfigError

Metric = Literal["weight", "activation", "row_fisher", "fisher"]
Allocation = Literal["uniform", "greedy"]
Precision = Literal["auto", "float32", "bfloat16"]
OnBadImage = Literal["skip", "error"]
Compensation = Literal["none", "residual", "distill", "both"]
Optimizer = Literal["adamw", "preconditioned"]
AttentionMethod = Literal["joint", "low_rank", "prune", "none"]
MlpMethod = Literal["auto", "low_rank", "prune", "none"]
Criterion = Literal["fisher", "magnitude", "gates"]
CalibrationLoss = Literal["output", "task"]

BUDGETS = ("keep_ratio", "max_params", "max_macs", "max_accuracy_drop")
DEFAULT_KEEP_RATIO = 0.5
DEFAULT_COMPENSATION = Duration(5.0, "minutes")


@dataclass(frozen=True)
class CompressionConfig:
    """Everything that decides how a model is compressed. Checked on construction; immutable.

    Budget: give one; with none, `keep_ratio=0.5`.

    Attributes:
        keep_ratio: parameters of the compressed model ÷ parameters of the original, the whole model counted, in (0, 1].
        max_params: parameters the compressed model may have.
        max_macs: multiply-accumulates per image the compressed model may need.
        max_accuracy_drop: top-1 accuracy the model may lose on the validation images, as a fraction (0.01 is one
            point); the smallest plan that holds it is searched. Without labels, agreement with the dense model takes
            the place of accuracy.
        metric: the inner product the approximation error is measured in. `"weight"`: plain SVD;
            `"activation"`: the layer's output error (arXiv 2402.06004); `"row_fisher"`: rows scaled by gradient power
            (arXiv 2207.00112); `"fisher"`: Kronecker-factored Fisher, the predicted loss increase itself.
        attention: how attention is compressed. `"joint"`: queries and keys share one `down`, each head's values lose
            the directions that its output needs least, and what is left of `v` and `o` may be factored; `"low_rank"`:
            each of q, k, v and o by itself; `"prune"`: whole heads; `"none"`: not at all.
        mlp: how feed-forward layers are compressed. `"auto"`: per block the cheapest of dense, factored, pruned, pruned
            and factored; `"low_rank"`, `"prune"` or `"none"`: only that.
        criterion: which neurons and heads go first. `"fisher"`: those that raise the predicted loss least, in closed
            form; `"magnitude"`: those of the smallest weights; `"gates"`: those of the smallest learned scores
            (arXiv 2104.08500).
        gate_duration: with `criterion="gates"`, how long to learn scores where none are given: `"2 minutes"`, or
            `"1 epoch"` over the calibration images, which is repeatable to the bit.
        gate_l1: weight of the scores' mean size beside the loss (nats), each score counted by the weights it stands
            for; more pushes more of them to 0.
        repair: solve the layer behind pruned neurons or heads again for the inputs that are left, by least squares.
        allocation: `"greedy"`: shapes differ by layer, each step goes where it buys most; `"uniform"`: every part keeps
            the same share of its parameters.
        correct_bias: move the mean of each layer's error into its bias.
        token_weighting: in [0, 1], how far input moments weight tokens by the squared norm of the loss gradient at
            the layer's input; 0 weights all tokens alike. Only for `metric="fisher"`.
        damping: added to the eigenvalues of a metric before its inverse square root, relative to the largest one.
        rank_multiple: ranks and widths are multiples of this; 8 suits most hardware.
        target: module name, or a tail of it, of the model inside a larger one to compress, such as `vision_model` of a
            CLIP model; `None`: the model itself.
        target_modules: patterns of layers to compress (`*`, `?`; any dotted tail of the name matches); `None`: all.
        skip_modules: patterns of layers to leave dense.
        num_images: calibration images to use at most; `None`: all.
        batch_size: images in a calibration batch.
        measuring_images: of the calibration images, how many also serve to correct the predicted losses by measured
            ones; 0 corrects none.
        calibration_loss: whose curvature `metric="fisher"` and `"row_fisher"` measure. `"output"`: the divergence from
            the dense model's own output, without labels; `"task"`: the loss that the model computes itself for the
            images' targets, one backward pass per batch. That is the empirical Fisher, which is no curvature where the
            model fits its targets well (arXiv 1905.12558).
        fisher_probes: backward passes per batch, each with another random sign vector; more, less noise.
        validation_images: images held out of calibration and used for `max_accuracy_drop`.
        compensation: how accuracy is won back after the closed form. `"residual"`: a share of every layer's rank is
            solved again for what the compressed layers before it really pass on (arXiv 2402.06004); `"distill"`: the
            dense model teaches the compressed one; `"both"`: one after the other; `"none"`.
        residual_share: in (0, 1], the part of each layer's rank that the residual takes; 1 solves all of it again.
        compensation_duration: `"5 minutes"` that compensation may take, whose number of steps is fixed by timing a few
            of them, so that two runs need not be alike; or `"2 epochs"` over the images to distill for, repeatable to
            the bit. `None`: 5 minutes.
        compensation_images: images to distill on at most; `None`: all that are given.
        held_out_images: of these, how many only judge: they stop the distillation and choose its best state.
        optimizer: of the distillation. `"adamw"`; `"preconditioned"`: AdamW in the eigenbases of the moments that
            calibration has measured (see `preconditioning`).
        learning_rate: highest step of the optimizer; it warms up to it and follows a cosine to 0.
        distill_batch_size: images in a step of the distillation, over all processes.
        temperature: softens the class probabilities that the student is to match.
        feature_weight: weight of the mean squared error of four layer-normalised hidden states; the KL divergence's
            is 1.
        label_weight: weight of the cross entropy with the images' labels, where they have any.
        augmentation: mirror half of the images; the dense model answers for the mirrored ones.
        precision: arithmetic of the forward and backward passes; `"auto"` takes bfloat16 where the device gains.
        on_bad_image: `"skip"` leaves out an image that cannot be read and counts it; `"error"` stops.
        seed: of the random signs and of the choice of images.
    """

    keep_ratio: float | None = None
    max_params: int | None = None
    max_macs: int | None = None
    max_accuracy_drop: float | None = None

    metric: Metric = "fisher"
    attention: AttentionMethod = "joint"
    mlp: MlpMethod = "auto"
    criterion: Criterion = "fisher"
    gate_duration: str = "2 minutes"
    gate_l1: float = 2.0
    repair: bool = True
    allocation: Allocation = "greedy"
    correct_bias: bool = True
    token_weighting: float = 0.2
    damping: float = 1e-6

    rank_multiple: int = 8
    target: str | None = None
    target_modules: list[str] | None = None
    skip_modules: list[str] = field(default_factory=list)

    num_images: int | None = 1024
    batch_size: int = 16
    measuring_images: int = 128
    calibration_loss: CalibrationLoss = "output"
    fisher_probes: int = 2
    validation_images: int = 512

    compensation: Compensation = "none"
    residual_share: float = 1.0
    compensation_duration: str | None = None
    compensation_images: int | None = None
    held_out_images: int = 256
    optimizer: Optimizer = "preconditioned"
    learning_rate: float = 1.5e-5
    distill_batch_size: int = 32
    temperature: float = 1.0
    feature_weight: float = 20.0
    label_weight: float = 0.0
    augmentation: bool = True

    precision: Precision = "auto"
    on_bad_image: OnBadImage = "skip"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if hint is float or float in get_args(hint):
                object.__setattr__(self, name, _number(getattr(self, name)))
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are both given; a budget is one of {', '.join(BUDGETS)}.")
        if not given:
            object.__setattr__(self, "keep_ratio", DEFAULT_KEEP_RATIO)
        for name, hint in get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), hint)
        _check_range("keep_ratio", self.keep_ratio, 0, 1, low_open=True)
        _check_range("max_accuracy_drop", self.max_accuracy_drop, 0, 1)
        _check_range("token_weighting", self.token_weighting, 0, 1)
        _check_range("damping", self.damping, 0, 1, low_open=True)
        _check_range("seed", self.seed, 0, 2**63 - 1)
        _check_range("residual_share", self.residual_share, 0, 1, low_open=True)
        for name in ("learning_rate", "temperature"):
            _check_range(name, getattr(self, name), 0, math.inf, low_open=True)
        for name in ("feature_weight", "label_weight", "gate_l1"):
            _check_range(name, getattr(self, name), 0, math.inf)
        _check_range("measuring_images", self.measuring_images, 0, math.inf)
        for name in ("compensation_duration", "gate_duration"):
            _check_duration(name, getattr(self, name))
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value!r}.")

    @property
    def budget(self) -> str:
        """Name of the budget in force."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)

    @property
    def method(self) -> str:
        """What predicted losses are corrected for: the same errors mean other losses for other ways to compress."""
        repair = "repaired" if self.repair else "cut"
        return f"{self.metric}/{self.allocation}/{self.attention}/{self.mlp}/{self.criterion}/{repair}"

    @property
    def distillation_duration(self) -> Duration:
        """How long compensation may take."""
        return (
            DEFAULT_COMPENSATION if self.compensation_duration is None else Duration.parse(self.compensation_duration)
        )

    @property
    def gates_duration(self) -> Duration:
        """How long scores are learned."""
        return Duration.parse(self.gate_duration)

    @property
    def distills(self) -> bool:
        return self.compensation in ("distill", "both")

    @property
    def solves_residuals(self) -> bool:
        return self.compensation in ("residual", "both")

    @property
    def needs_gradients(self) -> bool:
        return self.metric in ("row_fisher", "fisher")

    def with_budget(self, **budget: float | int) -> "CompressionConfig":
        """The same recipe under another budget, e.g. `config.with_budget(keep_ratio=0.3)`."""
        return self.from_dict({**self.to_dict(), **dict.fromkeys(BUDGETS), **budget})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "CompressionConfig":
        """A named recipe; `overrides` are further fields.

        `"default"`: this package's own. `"svd"`: truncated SVD of the weights, one share for all layers.
        `"fwsvd"`: Hsu et al., arXiv 2207.00112. `"svd_llm"`: Wang et al., arXiv 2403.07378 (truncation-aware
        whitening). `"azizi2024"`: Azizi et al., arXiv 2402.06004 (activation-aware, mixed ranks by energy,
        residual tensors). `"low_rank"`: this package's metric, but nothing is pruned or shared. `"vtp"`: Zhu et al.,
        arXiv 2104.08500 (neurons and heads pruned by learned scores, then fine-tuned). `"kumar2022"`: Kumar,
        arXiv 2203.13444 (the same for neurons, truncated SVD of attention, then fine-tuned).
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ConfigError(f"Unknown preset {name!r}.{_suggestion(name, PRESETS)} Presets: {', '.join(PRESETS)}.")
        return cls.from_dict({**PRESETS[name], **overrides})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the fields that are `None` by default and still are."""
        values = asdict(self)
        return {f.name: values[f.name] for f in fields(self) if values[f.name] is not None or f.default is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CompressionConfig":
        """The reverse of `to_dict`; unknown names are refused. `preset` may name a recipe to start from."""
        values = dict(values)
        preset = values.pop("preset", None)
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(f"Unknown setting {name!r}.{_suggestion(name, known)}")
        if preset is not None:
            return cls.preset(preset, **values)
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"A setting has a value of the wrong type: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write as YAML, or as JSON where the name ends in `.json`."""
        text = json.dumps(self.to_dict(), indent=2) if Path(path).suffix == ".json" else yaml.safe_dump(self.to_dict())
        Path(path).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "CompressionConfig":
        """Read YAML or JSON."""
        return cls.from_dict(load_settings(path))


def load_settings(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML or JSON file, unchecked."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"The config file {str(path)!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{str(path)!r} is neither YAML nor JSON: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{str(path)!r} must hold `name: value` lines.")
    return values


# What starts further from the dense model is better trained by larger steps.
_LOW_RANK = {"attention": "low_rank", "mlp": "low_rank", "learning_rate": 3e-5}
_GATED = {
    "metric": "weight",
    "mlp": "prune",
    "criterion": "gates",
    "repair": False,
    "allocation": "uniform",
    "correct_bias": False,
    "compensation": "distill",
    "optimizer": "adamw",
    "learning_rate": 3e-5,
}

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "low_rank": _LOW_RANK,
    "svd": {**_LOW_RANK, "metric": "weight", "allocation": "uniform", "correct_bias": False},
    "fwsvd": {**_LOW_RANK, "metric": "row_fisher", "allocation": "uniform", "correct_bias": False},
    "svd_llm": {**_LOW_RANK, "metric": "activation", "allocation": "uniform", "correct_bias": False},
    "azizi2024": {
        **_LOW_RANK,
        "metric": "activation",
        "allocation": "greedy",
        "correct_bias": False,
        "compensation": "residual",
        "residual_share": 0.25,
    },
    "vtp": {**_GATED, "attention": "prune"},
    "kumar2022": {**_GATED, "attention": "low_rank"},
}


def _suggestion(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


_COUNTS = (
    "max_params",
    "max_macs",
    "rank_multiple",
    "num_images",
    "batch_size",
    "fisher_probes",
    "validation_images",
    "compensation_images",
    "held_out_images",
    "distill_batch_size",
)


def _number(value: Any) -> Any:
    """YAML 1.1 takes `1e-6` for a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of the field's type; an int is a float, but a bool is neither."""
    alternatives = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in alternatives:
        return
    kind = alternatives[0]
    if get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in get_args(kind):
            raise ConfigError(f"{name} is one of {', '.join(get_args(kind))}, not {value!r}.")
    elif get_origin(kind) is list:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{name} must be a list of patterns, not {value!r}.")
    elif not isinstance(value, int | float if kind is float else kind) or (
        isinstance(value, bool) and kind is not bool
    ):
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
        raise ConfigError(f"{name} must be {wanted}, not {value!r}.")


def _check_duration(name: str, value: str | None) -> None:
    try:
        None if value is None else Duration.parse(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _check_range(name: str, value: float | None, low: float, high: float, low_open: bool = False) -> None:
    if value is None or (low <= value <= high and math.isfinite(value) and not (low_open and value == low)):
        return
    if high == math.inf:
        raise ConfigError(f"{name} must be a number {'above' if low_open else 'of at least'} {low}, not {value!r}.")
    raise ConfigError(f"{name} must lie in {'(' if low_open else '['}{low}, {high}], not {value!r}.")
