"""What a result was made from, as plain text, and how that differs from what is at hand.

Statistics and checkpoints are kept on disk and used again. Each of them says what it was made from, and nothing made
from something else is continued or used in silence.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..version import __version__

Identity = dict[str, dict[str, str]]
"""What is said where things differ, such as `"another model"` → facts that tell them apart, by name."""

SETTINGS = "other settings"
PACKAGE = "another version of this package"

LONGEST_SHOWN = 40
SHOWN = 3
"""Facts of one kind that a sentence names."""


def facts_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Plain data by name as text: itself where it is short, otherwise a digest."""
    texts = {name: json.dumps(value, sort_keys=True, default=_kind) for name, value in values.items()}
    return {
        name: text if len(text) <= LONGEST_SHOWN else hashlib.sha256(text.encode()).hexdigest()
        for name, text in texts.items()
    }


def _kind(value: Any) -> str:
    """Of something that is no plain data; its own text may hold an address."""
    return type(value).__qualname__


def package_facts() -> dict[str, str]:
    """The version of this package."""
    return {"version": __version__}


def identity_digest(identity: Identity) -> str:
    """One short digest of all facts."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def differences(then: Identity, now: Identity) -> str:
    """What differs, as the end of a sentence: `"another model (weights 0a1b…, now 2c3d…)"`; empty if nothing does.

    Facts that only one of the two knows are not compared: there may have been no image processor, or a later version of
    transformers may have added a value to the config.
    """
    found = []
    for kind, facts in now.items():
        former = then.get(kind, {})
        names = [name for name in facts if name in former and former[name] != facts[name]]
        shown = [f"{name} {_shown(former[name])}, now {_shown(facts[name])}" for name in names[:SHOWN]]
        shown += [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
        found += [f"{kind} ({'; '.join(shown)})"] if shown else []
    return " and ".join(found)


def _shown(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:12]}…"
