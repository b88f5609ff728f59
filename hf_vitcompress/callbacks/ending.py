"""What a user has to know when a training ends: a Trainer writes its own card over ours."""

import shlex

from transformers.utils import logging

from ..model.assembly import is_factored
from .link import TrainerLink

logger = logging.get_logger(__name__)


def say_whose_card(callback: TrainerLink) -> None:
    """Say how our card gets back in its place, once a training: by the last of our callbacks.

    `Trainer.push_to_hub` and `Trainer.create_model_card` come after every callback.
    """
    trainer = callback.trainer
    ours = [known for known in trainer.callback_handler.callbacks if isinstance(known, TrainerLink)]
    if ours[-1:] != [callback] or not is_factored(callback.model) or not trainer.is_world_process_zero():
        return
    folder, repository = trainer.args.output_dir or "", trainer.hub_model_id or trainer.args.hub_model_id
    command = f"vitcompress push {shlex.quote(folder)} {shlex.quote(repository or 'REPOSITORY')}"
    logger.warning(
        "trainer.push_to_hub() and trainer.create_model_card() write the Trainer's own card over that of the "
        f"compression. After them, `{command}` puts it back, below what the Trainer has written."
    )
