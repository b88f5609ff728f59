"""Hostile values in reports, for a while: python tests/drills/fuzz_reports.py --seed 0 --seconds 60

A finding is any error that is not one of the package's own, and anything of a report that acts in its card: HTML, a
link, a heading, a mark of ours or a control character outside the block of the recipe. Ends with exit code 1 if there
is one.
"""

import copy
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzzing import run

from hf_vitcompress.errors import VitCompressError
from hf_vitcompress.publish.cards import write_card
from hf_vitcompress.publish.cards.merging import END, START
from hf_vitcompress.report.report import REPORT_FILE, CompressionReport
from support.published import make

HOSTILE = [
    *(f"{END}<script>x</script>", "<img src=x onerror=x>", "[x](javascript:x)", "a\n# Injected\n", "a|b|c"),
    *("`x` ```\nend", "https://evil.example/x", "\x1b[31mred", "\u202eabc", "a" * 5000, "---\nlicense: evil\n---"),
    *("{{ 7*7 }}", "![x](http://evil.example/p.png)", "$\\frac{", "a\r\nb", "\x00", "[bold]x[/bold]", "../..", "", " "),
    *(None, True, -1, 0, 10**30, float("inf"), float("nan"), [], {}, [1], {"a": 1}, [[["x"]]], 2**63),
]
ACTS = ("<script", "<img", "](javascript", "https://evil", "http://evil", "\x1b", "\u202e", "\n# Injected", "\x00")
MORE = {
    "quantization": "int8_weight_only",
    "calibration_dataset": "a/b",
    "compensation": {
        "method": "both",
        "images": 3,
        "held_out_images": 2,
        "seconds": 3.0,
        "points": [{"stage": "residual", "seconds": 0.1, "images": 3, "loss": 0.2}],
    },
}
"""What the made report lacks."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to all that is in plain data."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def damaged(random_: random.Random, report: dict[str, Any]) -> dict[str, Any]:
    """The report with a hostile value, a hostile name, or without an entry."""
    changed = copy.deepcopy(report)
    *way, last = random_.choice(list(places(report)))
    inside: Any = changed
    for key in way:
        inside = inside[key]
    action = random_.randrange(8)
    if action == 0:
        del inside[last]
    elif action == 1 and isinstance(inside, dict):
        inside[str(random_.choice(HOSTILE))] = inside.pop(last)
    else:
        inside[last] = random_.choice(HOSTILE)
    return changed


def acting(card: str) -> list[str]:
    """What acts in a card, outside the recipe's block."""
    start, end = card.find("```yaml"), card.find("```\n\n</details>")
    text = card[:start] + card[end:] if 0 <= start < end else card
    return [mark for mark in ACTS if mark in text] + [mark for mark in (START, END) if text.count(mark) != 1]


def fuzz(seed: int, seconds: float, folder: Path) -> tuple[int, list[str]]:
    """Number of reports, and the findings."""
    random_, made = random.Random(seed), make(folder)
    file, count, findings, end = made.folder / REPORT_FILE, 0, [], time.monotonic() + seconds
    base = json.loads(file.read_text(encoding="utf-8")) | MORE
    while time.monotonic() < end:
        count += 1
        file.write_text(json.dumps(damaged(random_, base)), encoding="utf-8")
        (made.folder / "README.md").unlink(missing_ok=True)
        try:
            report = CompressionReport.load(made.folder)
            found = acting(write_card(made.folder, report).text) + acting(f"{START}{END}{report.to_markdown()}")
            str(report)
        except VitCompressError as error:
            found = ["several lines"] if len(str(error).splitlines()) != 1 else []
        except Exception as error:  # which is what is looked for
            found = [f"{type(error).__name__}: {error}"]
        if found:
            findings.append(f"{found}: report {count}")
    return count, findings


if __name__ == "__main__":
    sys.exit(run(__doc__, "reports", "reports", fuzz))
