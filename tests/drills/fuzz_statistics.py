"""Random damage to statistics and checkpoints: python tests/drills/fuzz_statistics.py --seed 0 --seconds 60

A damaged or edited file must be refused with one line, or hold to the bit what was written; one that was edited and has
a checksum that fits must be refused, or be planned with. All else is a finding: the file is kept, and the exit code 1.
"""

import json
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import arguments

from hf_vitcompress import Statistics
from hf_vitcompress.errors import VitCompressError
from hf_vitcompress.runtime.checkpoints import Checkpoint
from hf_vitcompress.statistics.sealed_file import METADATA, write_sealed
from support.digits import small_recipe
from support.moments import same
from support.students import lively, random_images

Content = tuple[dict[str, Tensor], dict[str, Any]]

STRANGE: list[Any] = [None, -1, 0, 1.5, 1e400, float("nan"), "", "x", [], [[]], {}, {"": None}, True, 10**30, "\ud800"]
"""Values that JSON can hold and nobody expects."""


def flipped(raw: bytes, chance: random.Random) -> bytes:
    content = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        # Half of the flips hit the header, which is a small part of the file.
        end = min(4096, len(content)) if chance.random() < 0.5 else len(content)
        content[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(content)


def truncated(raw: bytes, chance: random.Random) -> bytes:
    return raw[: chance.randrange(len(raw))]


def extended(raw: bytes, chance: random.Random) -> bytes:
    return raw + chance.randbytes(chance.choice((1, 8, 1000)))


def spliced(raw: bytes, chance: random.Random) -> bytes:
    start, other = chance.randrange(len(raw)), chance.randrange(len(raw))
    length = chance.choice((1, 16, 512))
    return raw[:start] + raw[other : other + length] + raw[start + length :]


def noise(_: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 8, 100, 5000)))


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [flipped, flipped, truncated, extended, spliced, noise]


def edit_plain(content: Content, chance: random.Random) -> None:
    """Somewhere in the plain part, at any depth: another value, none, or one more."""
    at: Any = content[1]
    while True:
        key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or chance.random() < 0.3:
            break
        at = at[key]
    if isinstance(at, dict) and chance.random() < 0.3:
        del at[key]
    else:
        at[key] = chance.choice(STRANGE)


def edit_values(content: Content, chance: random.Random) -> None:
    tensor = content[0][chance.choice(list(content[0]))]
    if tensor.numel():
        tensor.view(-1)[chance.randrange(tensor.numel())] = chance.choice((float("nan"), float("inf"), -1e30, 0.0, 7.0))


def edit_shape(content: Content, chance: random.Random) -> None:
    name = chance.choice(list(content[0]))
    tensor = content[0][name]
    flat = tensor.flatten()
    content[0][name] = chance.choice((flat, flat[: len(flat) // 2], tensor[None], tensor.half(), tensor.int()))


def swap(content: Content, chance: random.Random) -> None:
    one, other = chance.choice(list(content[0])), chance.choice(list(content[0]))
    content[0][one], content[0][other] = content[0][other], content[0][one]


def drop(content: Content, chance: random.Random) -> None:
    del content[0][chance.choice(list(content[0]))]


def rename(content: Content, chance: random.Random) -> None:
    name = chance.choice(list(content[0]))
    new = chance.choice((name + "x", name.replace("/", "."), "x/" + name, "", "inputs//first"))
    content[0][new] = content[0].pop(name)


EDITS: list[Callable[[Content, random.Random], None]] = [edit_plain, edit_values, edit_shape, swap, drop, rename]


def contents(path: Path) -> Content:
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()[METADATA])
        return {key: file.get_tensor(key) for key in file.keys()}, plain  # noqa: SIM118 (not a dict)


class Fuzz:
    """Counts outcomes; findings are printed, each with the seed that shows it again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outcomes, self.findings = folder, Counter[str](), 0
        self.dense, self.compressor = lively(), small_recipe(measuring_images=16)
        self.whole = folder / "whole"
        self.known = self.compressor.calibrate(self.dense, random_images(60), checkpoint=self.whole)
        self.state = {"format": 2, "state": {"step": 3}, "learner": {"parameters": {"a": torch.arange(64.0)}}}
        self.identity = {"other settings": {"seed": "0"}}
        self.kept = Checkpoint(folder / "stage", Accelerator(), self.identity)
        self.kept.save(self.state)

    def judged(self, seed: int, what: str, work: Callable[[Path], bool], path: Path) -> None:
        try:
            outcome = "right" if work(path) else "WRONG"
        except VitCompressError as error:
            outcome = "refused" if "\n" not in str(error) else "WRONG"
        except Exception:
            outcome = "WRONG"
            traceback.print_exc()
        self.outcomes[f"{what}: {outcome}"] += 1
        if outcome == "WRONG":
            self.findings += 1
            print(f"seed {seed}: {what}; the file is {shutil.copy(path, Path(tempfile.gettempdir()) / f'fuzz-{seed}')}")

    def loads(self, path: Path) -> bool:
        """What loads is what was written."""
        return same(Statistics.load(path), self.known)

    def plans(self, path: Path) -> bool:
        """What loads and fits the model makes a plan."""
        statistics = Statistics.load(path)
        self.compressor.build(self.dense, statistics, self.compressor.plan(self.dense, statistics))
        return True

    def resumes(self, path: Path) -> bool:
        loaded = Checkpoint(path, Accelerator(), self.identity).load()
        return loaded is not None and str(loaded) == str(self.state)

    def once(self, seed: int) -> None:
        chance = random.Random(seed)
        path = self.folder / "file"
        kind = chance.choice(("damage", "edit", "seal", "checkpoint"))
        if kind in ("damage", "checkpoint"):
            damage = chance.choice(DAMAGES)
            source = self.whole if kind == "damage" else self.kept.path
            assert source is not None
            path.write_bytes(damage(source.read_bytes(), chance))
            work = self.loads if kind == "damage" else self.resumes
            self.judged(seed, f"{kind}, {damage.__name__}", work, path)
            return
        content, edit = contents(self.whole), chance.choice(EDITS)
        edit(content, chance)
        tensors = {name: tensor.clone().contiguous() for name, tensor in content[0].items()}
        try:
            if kind == "edit":
                save_file(tensors, path, metadata={METADATA: json.dumps(content[1])})
            else:
                kept = content[1].keys() - {"checksum", "format_version"}
                write_sealed(path, tensors, {name: content[1][name] for name in kept})
        except Exception:  # such a file cannot be written
            self.outcomes[f"{kind}, {edit.__name__}: cannot be written"] += 1
            return
        self.judged(seed, f"{kind}, {edit.__name__}", self.loads if kind == "edit" else self.plans, path)


def main() -> int:
    seed, seconds = arguments(__doc__)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        fuzz, end, count = Fuzz(Path(folder)), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            fuzz.once(seed + count)
            count += 1
    for outcome, times in sorted(fuzz.outcomes.items()):
        print(f"{times:6} {outcome}")
    print(f"statistics: {count} files in {seconds:g} s with seed {seed}, {fuzz.findings} findings")
    return 1 if fuzz.findings else 0


if __name__ == "__main__":
    sys.exit(main())
