"""What callbacks share that change the structure of a Trainer's model while it is being trained."""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from torch import Tensor, nn
from transformers import Trainer

from ..architectures.subject import Subject
from ..compressor import ViTCompressor
from ..config import CompressionConfig
from ..errors import ConfigError
from ..evaluation.reference import check_classes
from ..images.sources import open_images
from ..importance.gates import gates_of
from ..model.as_built import check_as_built
from ..model.assembly import empty_model, is_factored
from ..model.dense import to_dense
from ..model.loading import check_model
from ..model.restructure import Roles, adopt, carry_optimizer, follow_layout, parameter_roles, take_tokens
from ..model.timm import is_wrapper
from ..model.timm_forms import split_in_place
from ..model.timm_images import as_companions
from ..model.towers import part_of
from ..modeling_factored import CONFIG_FILE
from ..planning.foresight import check_reach
from ..publish.push import check_repository, push_model
from ..publish.saved import SavedFiles
from ..report.report import REPORT_FILE, CompressionReport
from ..runtime.distributed import local_work
from ..runtime.outputs import check_renewable
from .ending import say_whose_card
from .link import TrainerLink
from .resources import image_processor_of, own_random_state, training_images
from .wrappers import renew_wrappers

SHARDED = {
    DistributedType.FSDP: "FSDP",
    DistributedType.DEEPSPEED: "DeepSpeed",
    DistributedType.MEGATRON_LM: "Megatron-LM",
}


class StructureCallback(TrainerLink):
    """A callback that replaces the model by a smaller one, in place, while it is being trained.

    Args:
        images: calibration images; `None`: the Trainer's training data.
        output_dir: folder that the model is saved to when training ends.
        push_to_hub: Hub repository that it is pushed to.
        reset_best: after each change of the structure, forget the best checkpoint found before it.

    Attributes:
        report: the report of the last compression, with a resumed training that of its checkpoint; `None` before the
            first one.
    """

    def __init__(
        self,
        images: Any = None,
        output_dir: str | Path | None = None,
        push_to_hub: str | None = None,
        reset_best: bool = True,
    ) -> None:
        super().__init__()
        self.images, self.output_dir, self.push_to_hub, self.reset_best = images, output_dir, push_to_hub, reset_best
        self.report: CompressionReport | None = None
        self._roles: Roles = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_roles": {}}

    def meet(self, trainer: Trainer) -> None:
        refuse_sharded_model(trainer, type(self).__name__)
        if self.push_to_hub is not None:
            check_repository(self.push_to_hub, trainer.args.hub_token)
        if self.output_dir is not None:
            check_renewable(self.output_dir)
        check_model(trainer.model)
        model: Any = trainer.model
        if not (is_factored(model) or gates_of(model)):  # scores are folded before the model is compressed
            check_as_built(model)
        super().meet(trainer)
        self._roles = {}
        follow_layout(self.model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        model = self.model
        follow_layout(model)
        folder = Path(self.trainer.args.output_dir or ".") / f"checkpoint-{state.global_step}"
        if state.global_step:
            self._take_tokens(folder)
            if is_factored(model) and (folder / REPORT_FILE).is_file():
                self.report = CompressionReport.load(folder)
        roles = parameter_roles(model)
        if state.global_step and holds(self.trainer.optimizer, self._roles.keys() - roles.keys()):
            raise ConfigError(
                "The optimizer of this Trainer belongs to a model of another structure than the checkpoint's. Resume "
                "with a new Trainer."
            )
        self._roles = roles
        if state.global_step and is_factored(model) and not model.companions:
            restore_companions(self.trainer, folder)

    def foresee(self, config: CompressionConfig) -> None:
        """Refuse before the training what no compression after it could do, as far as it is known without images.

        Raises:
            VitCompressError: images or target are not found, the budget of parameters is out of reach, or nothing can
                be compressed.
        """
        if isinstance(self.images, str | Path):
            open_images(self.images, limit=1)
        dense = empty_model(self.model, {})
        subject = Subject.alone(dense) if config.target is None else part_of(dense, config.target)
        if config.searches_accuracy:
            check_classes(subject.model)
        check_reach(subject, config)

    def compress(self, config: CompressionConfig, importance: Mapping[str, Tensor] | None = None) -> None:
        """Compress the model that is being trained.

        Args:
            config: the recipe; its budget is relative to the dense form of the model.
            importance: learned scores, as `ViTCompressor` takes them.
        """
        trainer = self.trainer
        with own_random_state(config.seed):
            compressor = ViTCompressor(
                config,
                image_processor_of(trainer),
                progress=not trainer.args.disable_tqdm,
                accelerator=trainer.accelerator,
                importance=importance,
            )
            images = training_images(trainer, config) if self.images is None else self.images
            small = compressor.compress(to_dense(self.model).eval(), images)
        self.report = compressor.report
        adopt(self.model, small)
        self.renew()
        if self.reset_best:
            state = trainer.state
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def split(self) -> None:
        """Split the fused layers of a model of timm now, so that each part can have something of its own."""
        if not is_wrapper(self.model):
            return
        roles = parameter_roles(self.model)
        split_in_place(self.model)
        if self.trainer.optimizer is not None:
            carry_optimizer(self.trainer.optimizer, roles, self.model)

    def take_best(self) -> None:
        """At the end of a training, let all follow the best checkpoint, which may have brought another structure."""
        best = self.trainer.state.best_model_checkpoint
        if best is not None and self.trainer.args.load_best_model_at_end:
            self._take_tokens(Path(best))
        self.renew()

    def _take_tokens(self, folder: Path) -> None:
        if (folder / CONFIG_FILE).is_file() and not is_wrapper(self.model):
            take_tokens(self.model, folder)

    def renew(self) -> None:
        """Let the optimizer and the wrappers follow the model if its structure has changed."""
        trainer = self.trainer
        roles = parameter_roles(self.model)
        if roles.keys() == self._roles.keys():
            return
        if trainer.optimizer is not None:
            carry_optimizer(trainer.optimizer, self._roles, self.model)
        self._roles = roles
        renew_wrappers(trainer)

    def finish(self) -> None:
        """Save the trained model to `output_dir` and push it to `push_to_hub`, where they are given."""
        trainer = self.trainer
        best = trainer.state.best_model_checkpoint
        if best is not None and is_factored(self.model) and not self.model.companions:
            restore_companions(trainer, Path(best))  # it has brought another structure
        self._roles = parameter_roles(self.model)
        with local_work(trainer.accelerator, "Saving the compressed model"):
            if trainer.is_world_process_zero():
                if self.output_dir is not None:
                    self.model.save_pretrained(self.output_dir)
                if self.push_to_hub is not None:
                    push_model(self.model, self.push_to_hub, token=trainer.args.hub_token)
        say_whose_card(self)


def refuse_sharded_model(trainer: Trainer, name: str) -> None:
    """Refuse a Trainer that deals out parts of the model's parameters to processes.

    Raises:
        ConfigError: the Trainer uses FSDP, DeepSpeed or Megatron-LM.
    """
    kind = SHARDED.get(trainer.accelerator.distributed_type)
    if kind is not None or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            f"{name} cannot change a model that {kind or 'FSDP or DeepSpeed'} has sharded. Train it with plain data "
            "parallelism (torchrun or accelerate launch without FSDP and DeepSpeed), or compress it after the "
            "training, with ViTCompressor or `vitcompress compress`."
        )


def holds(optimizer: Any, parameters: Set[nn.Parameter]) -> bool:
    """Whether an optimizer, or `None`, updates any of some parameters."""
    groups = [] if optimizer is None else optimizer.param_groups
    return any(parameter in parameters for group in groups for parameter in group["params"])


def restore_companions(trainer: Trainer, folder: Path) -> None:
    """Give a model that came from a checkpoint what lies beside it there, so that later saves include it."""
    if folder.is_dir():
        processor = image_processor_of(trainer)
        saved = SavedFiles.of(folder)
        model: Any = trainer.model
        model.companions = [*([saved] if saved.files else []), *as_companions(processor)]
