"""What callbacks use of a Trainer: its images, its image processor, and a random state beside its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

from accelerate.data_loader import IterableDatasetShard
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, set_seed

from ..config import CompressionConfig
from ..errors import DataError
from ..runtime.random_state import unchanged_random_state


@contextlib.contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """A block with random states of its own, made from `seed` alone; afterwards the Trainer's are back."""
    with unchanged_random_state():
        set_seed(seed % 2**32)
        yield


def image_processor_of(trainer: Trainer) -> Any:
    """The Trainer's `processing_class` if it processes images, else `None`."""
    processor = trainer.processing_class
    return processor if "pixel_values" in getattr(processor, "model_input_names", ()) else None


def training_images(trainer: Trainer, config: CompressionConfig) -> DataLoader:
    """The Trainer's training data through its collator; its own iteration is untouched, and none of it is held."""
    loader = trainer.callback_handler.train_dataloader
    if loader is None:
        loader = trainer.get_train_dataloader()
    return batches_of(loader.dataset, loader.collate_fn, config.batch_size)


def batches_of(dataset: Any, collate: Any, batch_size: int) -> DataLoader:
    """Batches of a data set in its own order; `open_images` reads those of a map-style one by their index.

    Raises:
        DataError: the data set is empty.
    """
    if isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    if not isinstance(dataset, IterableDataset) and len(dataset) == 0:
        raise DataError("The Trainer's data set is empty: give images to calibrate on (images=…).")
    return DataLoader(dataset, batch_size, collate_fn=collate)
