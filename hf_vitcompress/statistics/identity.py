"""What statistics are made from: the model, its image processor and the images."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from accelerate import Accelerator

from ..architectures.subject import Subject
from ..images.digest import READY, images_facts
from ..images.images import ImageSource
from ..images.unloaded import UnloadedProcessor
from ..runtime.identity import PACKAGE, Identity, facts_of, package_facts
from ..runtime.weights import model_digest

MODEL = "another model"
CONFIG = "another config of the model"
PROCESSOR = "another image processor"
IMAGES = "other images"

NO_PART_OF_THE_FUNCTION = frozenset(
    {
        "architectures",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_implementation",
        "drop_path_rate",
        "dropout",
        "dtype",
        "hidden_dropout_prob",
        "id2label",
        "image_processor_type",
        "initializer_factor",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pretrained_cfg",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Values of a model's config that change nothing about what it computes when it is not trained."""

NO_PART_OF_THE_PIXELS = frozenset(
    {
        "architecture",
        "data_format",
        "device",
        "disable_grouping",
        "image_processor_type",
        "processor_class",
        "return_tensors",
    }
)
"""Settings of an image processor that change no pixel."""
BACKENDS = ("Fast", "Pil")
"""Ends of the names of processors that differ in nothing but the library that does their work."""


def subject_identity(subject: Subject) -> Identity:
    """The model, what the whole reads of it, and its image processor."""
    reading = None if subject.reading is None else asdict(subject.reading)
    model = {"weights": model_digest(subject.model, by_name=True), **facts_of({"part that is read": reading})}
    config = facts_of(_without(subject.model.config.to_dict(), NO_PART_OF_THE_FUNCTION))
    found = {MODEL: model, CONFIG: config}
    unknown = subject.processor is None or isinstance(subject.processor, UnloadedProcessor)
    return found if unknown else {**found, PROCESSOR: processor_facts(subject.processor)}


def processor_facts(processor: Any) -> dict[str, str]:
    """What sort of processor it is, and its settings as far as they change pixels; of a function, its name."""
    processor = getattr(processor, "image_processor", processor)
    sort = getattr(processor, "__qualname__", type(processor).__name__)
    for backend in BACKENDS:
        sort = sort.removesuffix(backend)
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {}
    return facts_of({"sort": sort, **_without(settings, NO_PART_OF_THE_PIXELS)})


def identity_of(subject: Subject, images: ImageSource, accelerator: Accelerator, labels: bool = False) -> Identity:
    """All that is measured on images of a subject is made from.

    Args:
        labels: whether something is learnt from the images' labels.
    """
    facts = images_facts(images, accelerator, labels)
    found = {**subject_identity(subject), IMAGES: facts, PACKAGE: package_facts()}
    if facts["form"] == READY:
        found.pop(PROCESSOR, None)
    return found


def weights_in(identity: Identity) -> str:
    """The digest of the model's weights; empty where it is not known."""
    return identity.get(MODEL, {}).get("weights", "")


def _without(values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """At every depth, and without names that only say where something came from or how it is run."""
    return {
        name: _without(value, names) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name not in names and not str(name).startswith("_")
    }
