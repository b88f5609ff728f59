"""A callback that knows its Trainer.

Events bring the model, its optimizer and the training data. Four things need the Trainer itself: the order of its
callbacks (before the trackers), evaluations, the wrappers around its model (`DistributedDataParallel`,
`torch.compile`), and the optimizer at the moment at which it is made.
"""

import weakref
from typing import Any, Self, cast

from transformers import DefaultFlowCallback, PreTrainedModel, Trainer, TrainerCallback, TrainerState

from ..errors import ConfigError
from .finding import trainer_of


class TrainerLink(TrainerCallback):
    """A callback that knows its Trainer, and is called before those that report to trackers and close them.

    It may be given to several Trainers, and then works for the one that calls it. A copy, pickled or not, knows none.
    """

    def __init__(self) -> None:
        self._trainer: weakref.ReferenceType[Trainer] | None = None
        self._begun: TrainerState | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trainer": None, "_begun": None}

    def attach(self, trainer: Trainer) -> Self:
        """Add the callback to a Trainer whose training has not begun; attaching it again changes nothing.

        Returns:
            the callback itself.

        Raises:
            ConfigError: the callback cannot work in this Trainer.
            UnsupportedModelError: it cannot work with the Trainer's model.
        """
        self.follow(trainer)
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        lead(trainer.callback_handler.callbacks, self)
        return self

    @property
    def trainer(self) -> Trainer:
        """The Trainer that the callback works for.

        Raises:
            ConfigError: the callback has not been given to one.
        """
        trainer = self._known()
        if trainer is None:
            name = type(self).__name__
            raise ConfigError(
                f"{name} works inside a Trainer only: {name}(…).attach(trainer), or Trainer(…, callbacks=[…])."
            )
        return trainer

    @property
    def model(self) -> PreTrainedModel:
        """The Trainer's model, without wrappers."""
        return cast(PreTrainedModel, self.trainer.model)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._follow_caller(state)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._follow_caller(state)
        self._begun = state

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._begun is not state:
            name = type(self).__name__
            raise ConfigError(
                f"{name} was added while the training was running. Attach it before: {name}(…).attach(trainer), then "
                "trainer.train()."
            )

    def follow(self, trainer: Trainer) -> None:
        """Work for this Trainer from now on."""
        if self._known() is not trainer:
            self.meet(trainer)

    def meet(self, trainer: Trainer) -> None:
        """Start to work for a Trainer; what a subclass remembers of another one is forgotten."""
        self._trainer = weakref.ref(trainer)

    def _known(self) -> Trainer | None:
        return None if self._trainer is None else self._trainer()

    def _follow_caller(self, state: TrainerState) -> None:
        known = self._known()
        if known is None or known.state is not state:  # the event is another Trainer's
            known = trainer_of(self)
            self.follow(known)
        lead(known.callback_handler.callbacks, self)


def lead(callbacks: list[TrainerCallback], callback: TrainerCallback) -> None:
    """Move a callback before the first that may report to a tracker or close it.

    It only moves forward: an event that is going through the list meanwhile then neither skips nor repeats one.
    """
    leading = (DefaultFlowCallback, TrainerLink)
    place = next((i for i, other in enumerate(callbacks) if not isinstance(other, leading)), len(callbacks))
    if callback in callbacks[place:]:
        callbacks.remove(callback)
        callbacks.insert(place, callback)
