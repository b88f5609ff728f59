"""The Trainer that calls a callback, found among its callers.

transformers hands an event the arguments, state and control, the model, the optimizer and its schedule, the processing
class and the data loaders. Neither the Trainer nor anything that leads to it is among them (`call_event` of
`transformers.trainer_callback.CallbackHandler`). With `Trainer(…, callbacks=[…])` and `trainer.add_callback(…)` the
callers are therefore the only trace of it. `callback.attach(trainer)` names the Trainer, and needs no search.
"""

import inspect
from types import FrameType

from transformers import Trainer, TrainerCallback

from ..errors import ConfigError


def trainer_of(callback: TrainerCallback) -> Trainer:
    """The Trainer whose event `callback` is handling: the nearest caller that is a Trainer.

    Raises:
        ConfigError: no caller is one, or this Python does not show them.
    """
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            return caller
        frame = frame.f_back
    name = type(callback).__name__
    raise ConfigError(f"{name} works inside a Trainer only, and finds none that calls it: {name}(…).attach(trainer).")
