"""Telling images by their content: whether the same ones are given again, whatever they are called and wherever."""

import hashlib
import io
import os
import stat
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from ..runtime.distributed import from_main, local_work
from ..runtime.weights import tensor_digest
from .arrays import is_ready
from .decoding import Raw, UnreadableImageError
from .images import ImageSource

SAMPLE = 4096
"""Bytes at the beginning, in the middle and at the end of a file that are read, besides its size."""

LOOKED_AT = 8192
"""Images of a set whose bytes are read to tell it from others."""

UNREADABLE = "unreadable"


READY = "ready tensors"
"""The `form` of images that no image processor has to do with."""


def images_facts(images: ImageSource, accelerator: Accelerator, labels: bool = False) -> dict[str, str]:
    """`facts_of_images`, found by the main process for all of them."""
    facts: dict[str, str] = {}
    with local_work(accelerator, "Looking at the images"):
        if accelerator.is_main_process:
            facts = facts_of_images(images, labels)
    return from_main(accelerator, facts)


def facts_of_images(images: ImageSource, labels: bool = False, left_out: Collection[int] = ()) -> dict[str, str]:
    """The facts that tell these images from others: their `form`, their `content` in whatever order, and their `order`.

    Each is looked at once. A file is known by its size and a sample of its bytes. Of more than `LOOKED_AT` images so
    many are looked at, evenly over all, besides their number: a stage that uses more of them reads them over hours, and
    is not to begin by reading all of them for this.

    Args:
        labels: whether labels and targets count, as they do where something is learnt from them.
        left_out: numbers of images whose content does not count.
    """
    count = len(images)
    places = range(count) if count <= LOOKED_AT else [i * count // LOOKED_AT for i in range(LOOKED_AT)]
    if labels not in images.digests:
        images.digests[labels] = [_digest_at(images, index, labels) for index in places]
    digests = [
        UNREADABLE if images.number(index) in left_out else digest
        for index, digest in zip(places, images.digests[labels], strict=True)
    ]
    size = str(count) if count > LOOKED_AT else ""
    return {
        "form": READY if all(digest.startswith(READY) for digest in digests) else "images to process",
        "content": _digest("".join(sorted(digests)) + size),
        "order": _digest("".join(digests) + size),
    }


def _digest_at(images: ImageSource, index: int, labels: bool) -> str:
    """Of the image and what is known about it; begins with `READY` where it needs no processor."""
    try:
        raw = images.images[index]
    except UnreadableImageError:  # whoever reads the image says what is wrong with it
        return UNREADABLE
    known = "".join(_text(value) for value in _known(images, index, labels))
    return (READY if is_ready(raw) else "") + _digest(image_digest(raw) + known)


def _known(images: ImageSource, index: int, labels: bool) -> list[Any]:
    """What is known about an image."""
    kinds = (images.inputs, images.labels, images.targets) if labels else (images.inputs,)
    return [kind[index] for kind in kinds if kind is not None]


def image_digest(raw: Raw) -> str:
    """Digest of an image that need not be decoded; a file and its bytes in a data set have the same one."""
    if isinstance(raw, Mapping):
        raw = raw.get("bytes") or raw.get("path")
    try:
        if isinstance(raw, np.ndarray):
            return _digest(f"{raw.dtype} {raw.shape}", raw.tobytes())
        if isinstance(raw, Tensor):
            return tensor_digest(raw)
        if isinstance(raw, Image.Image):
            return _digest(f"{raw.mode} {raw.size} {raw.getpalette()}", raw.tobytes())
        if isinstance(raw, bytes):
            return _sampled(io.BytesIO(raw), len(raw))
        if isinstance(raw, str | os.PathLike):
            found = os.stat(raw)
            if not stat.S_ISREG(found.st_mode):
                return UNREADABLE  # a pipe would never end
            with open(raw, "rb", buffering=0) as file:
                return _sampled(file, found.st_size)
        if hasattr(raw, "seek"):
            return _sampled(raw, raw.seek(0, os.SEEK_END))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        pass  # whoever reads the image says what is wrong with it
    return UNREADABLE


def _sampled(file: BinaryIO, size: int) -> str:
    """Of the size, and of the first, middle and last bytes; of all bytes where they are few."""
    starts = (0, (size - SAMPLE) // 2, size - SAMPLE) if size > 3 * SAMPLE else range(0, size, SAMPLE)
    parts = []
    for start in starts:
        file.seek(start)
        parts.append(file.read(SAMPLE))
    return _digest(str(size), *parts)


def _text(value: Any) -> str:
    """Of a label, or of tensors by name."""
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, Mapping):
        return "".join(f"{name} {_text(value[name])}" for name in sorted(value, key=str))
    return repr(value)


def _digest(text: str, *contents: bytes) -> str:
    hashed = hashlib.sha256(text.encode())
    for content in contents:
        hashed.update(content)
    return hashed.hexdigest()
