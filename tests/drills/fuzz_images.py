"""Damaged images and forms of data that nobody meant, for some time: each is read, left out or refused in one sentence.

    python tests/drills/fuzz_images.py --seed 0 --seconds 60

Prints what ended otherwise, with the number that makes it again (`--first`), and how many were tried.
"""

import argparse
import io
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from hf_vitcompress.errors import VitCompressError
from hf_vitcompress.images.images import ImageSource
from hf_vitcompress.images.sources import open_images

SIZE = 16
PATIENCE = 20
"""Seconds after which an image has hung."""

SAVED: list[tuple[str, str, dict[str, Any]]] = [
    ("PNG", "RGB", {}),
    ("PNG", "P", {"transparency": 0}),
    ("PNG", "LA", {}),
    ("PNG", "1", {}),
    ("PNG", "I;16", {}),
    ("JPEG", "RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("GIF", "P", {}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("WEBP", "RGB", {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0"}),
    ("BMP", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "I;16", {}),
    ("TIFF", "F", {}),
    ("TIFF", "CMYK", {"compression": "packbits"}),
    ("PPM", "RGB", {}),
    ("ICO", "RGBA", {}),
    ("TGA", "RGB", {"compression": "tga_rle"}),
    ("JPEG2000", "RGB", {}),
]
"""Format, mode and options of the files that are damaged."""


class HangError(BaseException):
    """Past every handler of the package."""


def encoded(kind: str, mode: str, options: dict[str, Any], chance: random.Random) -> bytes:
    """A good file with random pixels."""
    width, height = chance.choice([(1, 1), (16, 16), (33, 20), (64, 64)])
    random_values = np.random.default_rng(chance.getrandbits(32))
    if mode == "I;16":
        image = Image.fromarray(random_values.integers(0, 65536, (height, width), dtype=np.uint16))
    else:
        image = Image.fromarray(random_values.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged(content: bytes, chance: random.Random) -> bytes:
    """A few changes of any kind; most of them where headers and metadata are."""
    changed = bytearray(content)
    for _ in range(chance.choice([0, 1, 1, 2, 4, 16])):
        place = chance.randrange(min(len(changed), chance.choice([32, 256, len(changed)])) or 1)
        length = chance.choice([1, 2, 4, 64])
        kind = chance.randrange(6)
        if kind == 0:
            changed[place : place + 1] = bytes([chance.getrandbits(8)])
        elif kind == 1:
            changed[place : place + length] = chance.choice([b"\xff", b"\0", b"\x7f"]) * length
        elif kind == 2:
            changed[place:place] = chance.randbytes(length)
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            del changed[place:]
        else:
            other = chance.randrange(len(changed) + 1)
            changed[place:place] = changed[other : other + length]
    return bytes(changed)


def read_file(chance: random.Random, processor: Any) -> str:
    """Read one damaged file; returns how it ended."""
    source = ImageSource([damaged(encoded(*chance.choice(SAVED), chance), chance)], None, "the file")
    batches = list(source.batches(processor, 1, [0]))
    if not batches:
        (why,) = source.bad_images
        assert why.startswith("image 0 of the file: "), why
        assert "0x" not in why, why
        return "left out"
    (pixel_values,) = batches[0].pixel_values
    assert pixel_values.shape == (3, SIZE, SIZE), pixel_values.shape
    assert torch.isfinite(pixel_values).all()
    return "read"


def odd(chance: random.Random, depth: int = 0) -> Any:
    """Something that may or may not be images, a batch, or labels."""
    shape = [chance.choice([0, 1, 2, 3, 4, 16]) for _ in range(chance.randrange(6))]
    dtype = chance.choice([torch.float32, torch.uint8, torch.int64, torch.bool, torch.float16, torch.complex64])
    leaves: list[Callable[[], Any]] = [
        lambda: (torch.randn(shape).abs() * chance.choice([1, 100])).to(dtype),
        lambda: torch.randn(4, 3, SIZE, SIZE),
        lambda: Image.new(chance.choice(["L", "RGB", "P", "F"]), (chance.choice([1, 8]), chance.choice([1, 8]))),
        lambda: np.zeros(shape),
        lambda: chance.choice([None, 0, 1.5, True, "no file.png", "", b"", b"x", "/dev/null", {}, [], (), set()]),
    ]
    if depth > 2 or chance.random() < 0.5:
        return chance.choice(leaves)()
    items = [odd(chance, depth + 1) for _ in range(chance.choice([1, 2, 2, 3]))]
    if chance.random() < 0.3:
        names = ["pixel_values", "labels", "image", "bytes", "path"]
        return {chance.choice(names): item for item in items}
    return chance.choice([list, tuple])(items)


def read_odd(chance: random.Random, processor: Any) -> str:
    """Open and read something of any form; returns how it ended."""
    try:
        source = open_images(odd(chance), label2id=chance.choice([None, {"LABEL_0": 0, "LABEL_1": 1}]))
        batches = list(source.batches(chance.choice([None, processor]), chance.choice([1, 4])))
    except VitCompressError:
        return "refused"
    return "read" if batches else "nothing"


def hung(*_: Any) -> None:
    raise HangError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    processor = ViTImageProcessorPil(size={"height": SIZE, "width": SIZE})
    signal.signal(signal.SIGALRM, hung)
    outcomes: Counter[str] = Counter()
    number, end, findings = arguments.first, time.monotonic() + arguments.seconds, 0
    while time.monotonic() < end:
        chance = random.Random(f"{arguments.seed}/{number}")
        kind = chance.choice([read_file, read_file, read_odd])
        signal.alarm(PATIENCE)
        try:
            outcomes[f"{kind.__name__}: {kind(chance, processor)}"] += 1
        except (Exception, HangError) as error:  # whatever it is, it is what is looked for
            findings += 1
            print(f"--seed {arguments.seed} --first {number}: {kind.__name__}: {type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
        number += 1
    tried = ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))
    print(f"images: {number - arguments.first} cases in {arguments.seconds:.0f} s; {tried}; {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
