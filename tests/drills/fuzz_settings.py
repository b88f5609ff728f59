"""Random damage to recipes and plans, for a while: python tests/drills/fuzz_settings.py --seed 0 --seconds 60

A finding is any error that is not one of the package's own, one that takes more than one line, and a file that takes
longer than 5 seconds. Ends with exit code 1 if there is one.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzzing import run
from transformers import ViTConfig, ViTForImageClassification

from hf_vitcompress import CompressionConfig, CompressionPlan
from hf_vitcompress.architectures.subject import Subject
from hf_vitcompress.config import SETTINGS
from hf_vitcompress.errors import VitCompressError
from hf_vitcompress.planning.foresight import check_feasible

SLOW = 5.0
"""Seconds that no file may take."""

SCALARS = [
    *(None, True, False, 0, 1, -1, 3, 2**63, 10**40, 0.0, 0.5, -0.5, 1e-300, 1e300),
    *(float("nan"), float("inf"), -float("inf")),
    *("", "0.5", "50%", "0,5", "nan", "yes", "fisher", "5 minutes", "é", "\0", "a\nb", "x" * 300, "*", "[", "!!int 3"),
]
MARKS = ["&a ", "*a", "<<: ", "? ", "- ", "[", "]", "{", "}", ": ", "!!", "| ", "#", '"', "'", "\t", "%", "\0", "\xff"]
PLAN = {
    "layers": {
        "vit.layers.0.mlp.fc1": {"rank": 4, "out_features": 32},
        "vit.layers.0.mlp.fc2": {"in_features": 32},
        "vit.layers.1.attention": {"qk_rank": 8},
    },
    "predicted_loss": 0.1,
    "keep_ratio": 0.5,
    "budget": {"keep_ratio": 0.5},
}


def any_value(random_: random.Random, depth: int = 0) -> Any:
    """A scalar, or a list or mapping of some."""
    kind = random_.random()
    if depth > 3 or kind < 0.7:
        return random_.choice(SCALARS)
    values = [any_value(random_, depth + 1) for _ in range(random_.randrange(4))]
    return values if kind < 0.85 else {str(random_.choice(SCALARS)): value for value in values}


def damaged(random_: random.Random, value: Any) -> Any:
    """The same plain data with one entry changed, taken out, added or renamed."""
    if not isinstance(value, dict) or not value or random_.random() < 0.15:
        return any_value(random_)
    changed, name = dict(value), random_.choice(list(value))
    action = random_.randrange(4)
    if action == 0:
        del changed[name]
    elif action == 1:
        changed[str(random_.choice(SCALARS))] = any_value(random_)
    elif action == 2:
        changed[f"{name}{random_.choice(['x', '.0', ' '])}"] = changed.pop(name)
    else:
        changed[name] = damaged(random_, value[name])
    return changed


def garbled(random_: random.Random, text: str) -> bytes:
    """The text with some characters cut, doubled, moved or put in."""
    for _ in range(random_.randrange(4)):
        start = random_.randrange(len(text) + 1)
        end = min(len(text), start + random_.randrange(1, 30))
        action = random_.randrange(4)
        if action == 0:
            text = text[:start] + text[end:]
        elif action == 1:
            text = text[:end] + text[start:end] * random_.choice([1, 2, 500]) + text[end:]
        elif action == 2:
            text = text[:start] + random_.choice(MARKS) * random_.choice([1, 1, 3, 2000]) + text[start:]
        else:
            text = text[end:] + text[:start]
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    if content and random_.random() < 0.2:
        content[random_.randrange(len(content))] = random_.randrange(256)
    return bytes(content)


def any_recipe(random_: random.Random) -> dict[str, Any]:
    """Some settings, mostly with values that they cannot have."""
    chosen = random_.sample(SETTINGS, random_.randrange(1, 6))
    return {field.name: random_.choice([field.default, any_value(random_)]) for field in chosen}


def written(random_: random.Random, content: Any, path: Path) -> None:
    """As JSON or YAML, garbled half of the time."""
    text = json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content, allow_unicode=True)
    path.write_bytes(garbled(random_, text) if random_.random() < 0.5 else text.encode())


def attempt(read: Callable[[], object]) -> str | None:
    """What is wrong with how a file was taken, if anything is."""
    start = time.monotonic()
    try:
        read()
    except VitCompressError as error:
        if len(str(error).splitlines()) != 1:
            return f"several lines: {error}"
    except Exception as error:  # which is what is looked for
        return f"{type(error).__name__}: {error}"
    return "took too long" if time.monotonic() - start > SLOW else None


def fuzz(seed: int, seconds: float, folder: Path) -> tuple[int, list[str]]:
    """Number of files, and the findings, each with the content that led to it."""
    random_ = random.Random(seed)
    torch.manual_seed(seed)
    tiny = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=16)
    subject = Subject.alone(ViTForImageClassification(tiny))
    config, findings, count, end = CompressionConfig(), [], 0, time.monotonic() + seconds

    def read_plan(path: Path) -> None:
        check_feasible(subject, config, CompressionPlan.load(path), None, None)

    while time.monotonic() < end:
        suffix = random_.choice([".json", ".yaml"])
        recipe, plan = folder / f"recipe{suffix}", folder / "plan.json"
        written(random_, any_recipe(random_), recipe)
        content: Any = PLAN
        for _ in range(random_.randrange(1, 4)):
            content = damaged(random_, content)
        written(random_, content, plan)
        for path, read in ((recipe, CompressionConfig.load), (plan, read_plan)):
            count += 1
            if (finding := attempt(lambda path=path, read=read: read(path))) is not None:
                findings.append(f"{finding[:300]}\n    {path.name}: {path.read_bytes()[:300]!r}")
    return count, findings


if __name__ == "__main__":
    sys.exit(run(__doc__, "settings", "recipes and plans", fuzz))
