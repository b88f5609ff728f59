"""The settings of a compression in five groups, each with its default, its range and its documentation."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ..durations import Duration
from ..metrics import METRICS, MetricName
from .budgets import BudgetSettings
from .fields import Doc, DurationText, Range

Allocation = Literal["uniform", "greedy"]
Precision = Literal["auto", "float32", "bfloat16"]
OnBadImage = Literal["skip", "error"]
CompensationMethod = Literal["none", "residual", "distill", "both"]
Optimizer = Literal["adamw", "preconditioned"]
AttentionMethod = Literal["joint", "low_rank", "prune", "none"]
MlpMethod = Literal["auto", "low_rank", "prune", "none"]
TokenMethod = Literal["auto", "none"]
Criterion = Literal["fisher", "magnitude", "gates"]
CalibrationLoss = Literal["output", "task"]

DEFAULT_COMPENSATION = Duration(5.0, "minutes")
DEFAULT_LEARNING_RATE = 1.5e-5
DEFAULT_RATE_WIDTH = 384
"""Features of a token up to which the default learning rate falls as they become more.

A step of Adam moves every weight alike, and each output by as many of them as there are features, so that narrow models
take larger steps (Yang et al., arXiv 2203.03466)."""


@dataclass(frozen=True)
class MethodSettings:
    """What is compressed, how, and by which measure of error."""

    metric: Annotated[
        MetricName,
        Doc(
            'Inner product that measures the approximation error. `"weight"`: plain SVD; `"activation"`: the error of '
            'the layer\'s output (arXiv 2402.06004); `"row_fisher"`: rows scaled by gradient power (arXiv 2207.00112); '
            '`"fisher"`: Kronecker-factored Fisher, which predicts the increase of the loss itself.'
        ),
    ] = "fisher"
    attention: Annotated[
        AttentionMethod,
        Doc(
            'How attention is compressed. `"joint"`: queries and keys share one `down`; per head, the value directions '
            "that the output projection needs least are removed, and the remaining `v` and `o` may be factored; "
            '`"low_rank"`: each of q, k, v and o is factored by itself; `"prune"`: whole heads are removed; `"none"`: '
            "attention stays dense."
        ),
    ] = "joint"
    mlp: Annotated[
        MlpMethod,
        Doc(
            'How feed-forward layers are compressed. `"auto"`: per block the cheapest of dense, factored, pruned, and '
            'pruned and factored; `"low_rank"` or `"prune"`: only that; `"none"`: they stay dense.'
        ),
    ] = "auto"
    tokens: Annotated[
        TokenMethod,
        Doc(
            'Whether plans may merge tokens that are alike (arXiv 2210.09461). `"auto"`: where a budget is one of MACs '
            'or of time and the model can; `"none"`: never.'
        ),
    ] = "auto"
    criterion: Annotated[
        Criterion,
        Doc(
            'Importance criterion: which neurons and heads are removed first. `"fisher"`: those that raise the '
            'predicted loss least, in closed form; `"magnitude"`: those with the smallest weights; `"gates"`: those '
            "with the smallest learned scores (arXiv 2104.08500)."
        ),
    ] = "fisher"
    gate_duration: Annotated[
        str,
        DurationText(),
        Doc(
            'With `criterion="gates"` and no scores given, how long scores are learned: `"2 minutes"`, or `"1 epoch"` '
            "over the calibration images, which makes the result repeatable to the bit."
        ),
    ] = "2 minutes"
    gate_l1: Annotated[
        float,
        Range(0),
        Doc(
            "Weight of the scores' mean size beside the loss (nats); each score counts by the number of weights that "
            "it multiplies. A larger weight pushes more scores to 0."
        ),
    ] = 2.0
    repair: Annotated[
        bool, Doc("Refit the layer that reads the pruned features to the remaining ones, by least squares.")
    ] = True
    allocation: Annotated[
        Allocation,
        Doc(
            '`"greedy"`: shapes differ by layer, and each step of the budget goes where it lowers the loss most; '
            '`"uniform"`: every group keeps the same share of its parameters.'
        ),
    ] = "greedy"
    correct_bias: Annotated[bool, Doc("Move the mean of each layer's error into its bias.")] = True
    damping: Annotated[
        float,
        Range(0, 1, low_open=True),
        Doc("Added to the eigenvalues of a metric before its inverse square root, relative to the largest one."),
    ] = 1e-6
    rank_multiple: Annotated[
        int, Range(1), Doc("Ranks and widths are multiples of this number; 8 suits most hardware.")
    ] = 8
    target: Annotated[
        str | None,
        Doc(
            "Name of the module to compress inside a larger model, or the end of its name, such as `vision_model` for "
            "a CLIP model. Budget and report then count this part. `None`: the model itself."
        ),
    ] = None
    target_modules: Annotated[
        list[str] | None,
        Doc(
            "Patterns of the layers to compress (`*`, `?`); the end of a dotted name matches, and the name of a module "
            "such as `layers.0` or `mlp` stands for all layers in it. `None`: all layers."
        ),
    ] = None
    skip_modules: Annotated[list[str], Doc("Patterns of the layers to leave dense.")] = field(default_factory=list)

    @property
    def method(self) -> str:
        """Key of the measured loss correction.

        Equal predicted errors imply different losses under different methods.
        """
        repair = "repaired" if self.repair else "cut"
        return f"{self.metric}/{self.allocation}/{self.attention}/{self.mlp}/{self.criterion}/{repair}"

    @property
    def needs_gradients(self) -> bool:
        """Whether the metric is made of gradients."""
        return METRICS[self.metric].needs_gradients

    @property
    def gates_duration(self) -> Duration:
        """`gate_duration` as a value."""
        return Duration.parse(self.gate_duration)


@dataclass(frozen=True)
class CalibrationSettings:
    """Which images are measured, and what is measured on them."""

    num_images: Annotated[
        int | None,
        Range(1),
        Doc("Largest number of calibration images, those that measure losses included. `None`: all."),
    ] = 1024
    batch_size: Annotated[int, Range(1), Doc("Images in a calibration batch.")] = 16
    measuring_images: Annotated[
        int,
        Range(0),
        Doc(
            "Number of calibration images that are kept out of the statistics, at most a quarter of them: compressed "
            "models are tried on them, to correct predicted losses by measured ones; 0: no correction."
        ),
    ] = 256
    calibration_loss: Annotated[
        CalibrationLoss,
        Doc(
            'Loss whose curvature `metric="fisher"` and `"row_fisher"` measure. `"output"`: the divergence from the '
            'dense model\'s own output, which needs no labels; `"task"`: the loss that the model computes for the '
            "images' targets, with one backward pass per batch. This empirical Fisher is no curvature where the model "
            "fits its targets well (arXiv 1905.12558)."
        ),
    ] = "output"
    fisher_probes: Annotated[
        int, Range(1), Doc("Backward passes per batch, each with new random signs; more passes lower the noise.")
    ] = 2
    token_weighting: Annotated[
        float,
        Range(0, 1),
        Doc(
            'With `metric="fisher"`, how far input moments weight each token by the squared norm of the loss gradient '
            "at the layer's input, in [0, 1]; 0: all tokens count alike."
        ),
    ] = 0.2
    validation_images: Annotated[
        int, Range(1), Doc("Images that are held out of calibration to measure `max_accuracy_drop` on.")
    ] = 512


@dataclass(frozen=True)
class CompensationSettings:
    """How accuracy is won back after the closed form."""

    compensation: Annotated[
        CompensationMethod,
        Doc(
            '`"residual"`: a share of every layer\'s rank is solved again for the inputs that the compressed layers '
            'before it really produce (arXiv 2402.06004); `"distill"`: the dense model teaches the compressed one; '
            '`"both"`: one after the other; `"none"`: the closed form alone.'
        ),
    ] = "none"
    residual_share: Annotated[
        float,
        Range(0, 1, low_open=True),
        Doc("Share of each layer's rank that the residual solves again, in (0, 1]; 1: all of it."),
    ] = 1.0
    compensation_duration: Annotated[
        str | None,
        DurationText(),
        Doc(
            'How long compensation takes. `"5 minutes"`: the number of steps follows from timing a few of them, so '
            'that two runs may differ; `"2 epochs"`: passes over the images, repeatable to the bit. `None`: 5 minutes.'
        ),
    ] = None
    compensation_images: Annotated[
        int | None,
        Range(1),
        Doc("Largest number of images to distill on. `None`: all that are given; of a stream 4,096."),
    ] = None
    held_out_images: Annotated[
        int,
        Range(1),
        Doc("Number of images that only judge: they stop the distillation and choose its best state."),
    ] = 256
    optimizer: Annotated[
        Optimizer,
        Doc(
            'Optimizer of the distillation. `"adamw"`; `"preconditioned"`: AdamW in the eigenbases of the moments that '
            "calibration measured."
        ),
    ] = "preconditioned"
    learning_rate: Annotated[
        float | None,
        Range(0, low_open=True),
        Doc(
            "Largest step size of the optimizer, which warms up to it and follows a cosine to 0. `None`: 1.5e-5, and "
            "for a model narrower than 384 features 384 ÷ width times as much."
        ),
    ] = None
    distill_batch_size: Annotated[int, Range(1), Doc("Images in a step of the distillation, over all processes.")] = 32
    temperature: Annotated[
        float, Range(0, low_open=True), Doc("Softens the class probabilities that the compressed model learns.")
    ] = 1.0
    feature_weight: Annotated[
        float,
        Range(0),
        Doc("Weight of the mean squared error of four layer-normalised hidden states; the KL divergence has weight 1."),
    ] = 20.0
    label_weight: Annotated[
        float, Range(0), Doc("Weight of the cross entropy with the images' labels, for images that have any.")
    ] = 0.0
    augmentation: Annotated[
        bool, Doc("Mirror half of the images left and right; the dense model answers for the mirrored ones.")
    ] = True

    def learning_rate_at(self, width: int) -> float:
        """`learning_rate`, or the default one of a model with so many features."""
        if self.learning_rate is not None:
            return self.learning_rate
        return DEFAULT_LEARNING_RATE * max(1.0, DEFAULT_RATE_WIDTH / width)

    @property
    def distills(self) -> bool:
        """Whether the dense model teaches the compressed one."""
        return self.compensation in ("distill", "both")

    @property
    def solves_residuals(self) -> bool:
        """Whether residuals are solved."""
        return self.compensation in ("residual", "both")

    @property
    def distillation_duration(self) -> Duration:
        """`compensation_duration` as a value; 5 minutes if it is `None`."""
        return (
            DEFAULT_COMPENSATION if self.compensation_duration is None else Duration.parse(self.compensation_duration)
        )


@dataclass(frozen=True)
class RunSettings:
    """How the work is done."""

    precision: Annotated[
        Precision,
        Doc('Arithmetic of the forward and backward passes. `"auto"`: bfloat16 on devices that are faster with it.'),
    ] = "auto"
    on_bad_image: Annotated[
        OnBadImage,
        Doc('`"skip"`: an image that cannot be read is left out and counted; `"error"`: it ends the run.'),
    ] = "skip"
    seed: Annotated[
        int,
        Range(0, 2**63 - 1),
        Doc("Seeds everything random: signs of the probes, choice and order of the images, augmentation."),
    ] = 0


GROUPS: dict[str, type] = {
    "Budget": BudgetSettings,
    "Method": MethodSettings,
    "Calibration": CalibrationSettings,
    "Compensation": CompensationSettings,
    "Run": RunSettings,
}
"""The groups by the title that `--help` shows."""
