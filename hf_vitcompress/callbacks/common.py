"""What callbacks need of the Trainer that calls them: finding it, its images, its random state, its wrapped model."""

import contextlib
import inspect
import random
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from accelerate import DistributedType
from accelerate.data_loader import IterableDatasetShard
from accelerate.utils import is_compiled_module
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, Subset
from transformers import DefaultFlowCallback, PreTrainedModel, Trainer, TrainerCallback, set_seed

from ..compressor import ViTCompressor
from ..config import CompressionConfig
from ..errors import ConfigError, DataError
from ..model.assembly import is_factored
from ..model.dense import to_dense
from ..model.loading import check_model
from ..model.restructure import Roles, adopt, carry_optimizer, follow_layout, parameter_roles
from ..publish.push import check_repository, push_model
from ..publish.record import SavedFiles
from ..report.report import CompressionReport
from ..runtime.distributed import local_work

SHARDED = {
    DistributedType.FSDP: "FSDP",
    DistributedType.DEEPSPEED: "DeepSpeed",
    DistributedType.MEGATRON_LM: "Megatron-LM",
}


class TrainerLink(TrainerCallback):
    """A callback that knows its Trainer, and is called before those that report to trackers and close them."""

    def __init__(self) -> None:
        self._trainer: weakref.ReferenceType[Trainer] | None = None

    @property
    def trainer(self) -> Trainer:
        trainer = None if self._trainer is None else self._trainer()
        if trainer is None:
            raise ConfigError(f"{type(self).__name__} works inside a Trainer only: Trainer(…, callbacks=[…]).")
        return trainer

    @property
    def model(self) -> PreTrainedModel:
        """The Trainer's, without wrappers."""
        return cast(PreTrainedModel, self.trainer.model)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.meet(calling_trainer(type(self).__name__))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer is None:  # added with `add_callback`
            self.meet(calling_trainer(type(self).__name__))

    def meet(self, trainer: Trainer) -> None:
        self._trainer = weakref.ref(trainer)
        callbacks = trainer.callback_handler.callbacks
        leading = (DefaultFlowCallback, TrainerLink)
        place = next((i for i, other in enumerate(callbacks) if not isinstance(other, leading)), len(callbacks))
        # Moving forward only: the event that this happens in goes through the list.
        if place < callbacks.index(self):
            callbacks.remove(self)
            callbacks.insert(place, self)


class StructureCallback(TrainerLink):
    """A callback that replaces the model by a smaller one, in place, while it is being trained.

    Args:
        images: to calibrate on; `None` for the Trainer's training data.
        output_dir: where to save the model when training ends.
        push_to_hub: repository to push it to.
        reset_best: after each change, seek the best checkpoint anew, among models of the new structure.

    Attributes:
        report: of the last compression; `None` before, and where it was done before the checkpoint that training went
            on from.
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

    def meet(self, trainer: Trainer) -> None:
        kind = SHARDED.get(trainer.accelerator.distributed_type)
        if kind is not None or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ConfigError(
                f"{type(self).__name__} cannot change a model that {kind or 'FSDP or DeepSpeed'} has sharded. Train it "
                "with plain data parallelism (torchrun or accelerate launch without FSDP and DeepSpeed), or compress "
                "it after the training, with ViTCompressor or `vitcompress compress`."
            )
        if self.push_to_hub is not None:
            check_repository(self.push_to_hub, trainer.args.hub_token)
        check_model(trainer.model)
        super().meet(trainer)
        follow_layout(self.model)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        model = self.model
        follow_layout(model)
        if self._roles and state.global_step and self._roles.keys() != parameter_roles(model).keys():
            raise ConfigError(
                "The optimizer of this Trainer belongs to a model of another structure than the checkpoint's. Resume "
                "with a new Trainer."
            )
        self._roles = parameter_roles(model)
        if state.global_step and is_factored(model) and not model.companions:
            restore_companions(self.trainer, state.global_step)

    def compress(self, config: CompressionConfig, importance: Mapping[str, Tensor] | None = None) -> None:
        """Compress the model that is being trained, at the budget of `config`, relative to its dense form.

        Args:
            importance: learned scores, as `ViTCompressor` takes them.
        """
        trainer = self.trainer
        with own_random_state(trainer, config.seed):
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

    def renew(self) -> None:
        """Let optimizer and wrappers follow a change of the model's structure; without one, nothing happens."""
        trainer = self.trainer
        roles = parameter_roles(self.model)
        if roles.keys() == self._roles.keys():
            return
        if trainer.optimizer is not None:
            carry_optimizer(trainer.optimizer, self._roles, self.model)
        self._roles = roles
        renew_wrappers(trainer)

    def finish(self) -> None:
        """Save and push the model that training has ended with."""
        trainer = self.trainer
        self._roles = parameter_roles(self.model)
        with local_work(trainer.accelerator, "Saving the compressed model"):
            if trainer.is_world_process_zero():
                if self.output_dir is not None:
                    self.model.save_pretrained(self.output_dir)
                if self.push_to_hub is not None:
                    push_model(self.model, self.push_to_hub, token=trainer.args.hub_token)


def calling_trainer(name: str) -> Trainer:
    """The Trainer whose event this is. The Trainer passes callbacks a lot, but neither itself nor its wrapped model."""
    frame = inspect.currentframe()
    try:
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, Trainer):
                return owner
            frame = frame.f_back
    finally:
        del frame
    raise ConfigError(f"{name} works inside a Trainer only: Trainer(…, callbacks=[…]).")


@contextlib.contextmanager
def own_random_state(trainer: Trainer, seed: int) -> Iterator[None]:
    """A block with random states of its own, the same on all processes; the Trainer's are as they were afterwards."""
    device = trainer.args.device
    states = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            set_seed(seed % 2**32)
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def image_processor_of(trainer: Trainer) -> Any:
    """The Trainer's `processing_class` where it is one of images."""
    processor = trainer.processing_class
    return processor if "pixel_values" in getattr(processor, "model_input_names", ()) else None


def training_images(trainer: Trainer, config: CompressionConfig) -> DataLoader:
    """The Trainer's training data as batches, in an order drawn from `config.seed`; its own iteration is untouched."""
    loader = trainer.callback_handler.train_dataloader
    if loader is None:
        loader = trainer.get_train_dataloader()
    return batches_of(loader.dataset, loader.collate_fn, config.batch_size, config.seed)


def batches_of(dataset: Any, collate: Any, batch_size: int, seed: int) -> DataLoader:
    """Batches of a data set, in an order drawn from `seed`; of an iterable one, as they come."""
    if isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    if not isinstance(dataset, IterableDataset):
        if len(dataset) == 0:
            raise DataError("The Trainer's data set is empty: give images to calibrate on (images=…).")
        dataset = Subset(dataset, random.Random(seed).sample(range(len(dataset)), len(dataset)))
    return DataLoader(dataset, batch_size, collate_fn=collate)


def renew_wrappers(trainer: Trainer) -> None:
    """Let `DistributedDataParallel` and `torch.compile` see a model's new parameters.

    The wrapper object stays, because the training loop holds it; it is initialised again, which also gives all
    processes the main one's weights.
    """
    wrapper: Any = trainer.model_wrapped
    if is_compiled_module(wrapper):
        torch.compiler.reset()
        wrapper = wrapper._orig_mod
    if isinstance(wrapper, DistributedDataParallel):
        handler = trainer.accelerator.ddp_handler
        options: dict[str, Any] = {} if handler is None else handler.to_kwargs()
        options |= {"device_ids": wrapper.device_ids, "output_device": wrapper.output_device}
        wrapper.reducer = wrapper.logger = None  # the old one takes its hooks off the parameters that stay
        DistributedDataParallel.__init__(wrapper, cast(PreTrainedModel, trainer.model), **options)
        if handler is not None:
            handler.register_comm_hook(wrapper)


def restore_companions(trainer: Trainer, step: int) -> None:
    """Recipe, plan and report of a model that a checkpoint brought, so that it goes on being saved with them."""
    folder = Path(trainer.args.output_dir or ".") / f"checkpoint-{step}"
    saved = SavedFiles.of(folder)
    processor = image_processor_of(trainer)
    model: Any = trainer.model
    model.companions = [*([saved] if saved.files else []), *([] if processor is None else [processor])]
