"""Which files of a folder are for others: those of known names that really lie in it."""

import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from ..configuration_factored import TRAVELLING_FILES
from ..modeling_factored import CARD_FILE, INDEX_FILE, WEIGHTS
from ..report.report import FIGURE_FILE, REPORT_FILE, REPORT_NAME

RECIPE_FILE = "compression_recipe.yaml"
PLAN_FILE = "compression_plan.json"
RECORD_FILES = (RECIPE_FILE, PLAN_FILE, REPORT_FILE, f"{REPORT_NAME}.md", FIGURE_FILE)

_PROCESSOR = r"\w*processor\w*_config\.json"
_TOKENIZER = (
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|generation_config)\.json"
    r"|vocab\.txt|merges\.txt|(spiece|tokenizer|sentencepiece\.bpe)\.model|chat_template\.jinja"
)
"""What a model that takes text needs besides."""
_TERMS = r"(LICEN[CS]E|NOTICE|COPYING)([-_][\w+-]+(\.\d+)?)?(\.(txt|md|rst|html))?|LICENSES/[\w+-]+(\.\d+)*(-\w+)*\.txt"

ALONG = re.compile("|".join([*map(re.escape, RECORD_FILES), r"compression_\w+\.md", _TERMS, _PROCESSOR, _TOKENIZER]))
"""What goes wherever the weights go: the image processor's file, too, where it cannot be loaded here."""

_PROGRAMS = {
    "onnx": r"\w+\.onnx(\.data)?",
    "openvino": r"\w+\.(xml|bin)",
    "executorch": r"\w+\.pte",
    "torch-export": r"\w+\.pt2",
}
"""By format, the files of a program; its folder has the name of the format."""
_BESIDE_PROGRAMS = rf"(config|export|export_report|generation_config)\.json|{_PROCESSOR}"

PUBLISHED = re.compile(
    "|".join(
        [
            *map(re.escape, ("config.json", INDEX_FILE, *TRAVELLING_FILES)),
            WEIGHTS.pattern,
            ALONG.pattern,
            *(rf"{folder}/({files}|{_BESIDE_PROGRAMS})" for folder, files in _PROGRAMS.items()),
        ]
    )
)
"""What goes to the Hub with the card; nothing else in the folder does."""

FOLDERS = (*_PROGRAMS, "LICENSES")
OURS_ALONE = re.compile(r"\.(git|cache|huggingface|vitcompress|saving).*|\.gitattributes|__pycache__")
"""Names that are never for others and need no mention."""


def goes_along(name: str) -> bool:
    """Whether a file lies beside the weights wherever they go; by its name, with its folder."""
    return ALONG.fullmatch(name) is not None


def files_within(root: Path, wanted: Callable[[str], object]) -> dict[str, Path]:
    """The files of a folder and of its known folders whose names are wanted, by these; links that leave it are none."""
    found = {path.relative_to(root).as_posix(): path for path in _entries(root)}
    return {name: path for name, path in found.items() if wanted(name) and is_inside(root, path)}


def published_files(root: Path) -> dict[str, Path]:
    """By their names on the Hub; without the card."""
    return files_within(root, PUBLISHED.fullmatch)


def left_out(root: Path) -> list[str]:
    """Names of what `published_files` leaves in the folder, links as such; neither the card nor Git's and our own."""
    published = {*published_files(root), CARD_FILE} if is_inside(root, root / CARD_FILE) else {*published_files(root)}
    names = []
    for path in _entries(root):
        name = path.relative_to(root).as_posix()
        if name not in published and not OURS_ALONE.fullmatch(name):
            names.append(f"{name} (a link)" if path.is_symlink() else f"{name}/" if path.is_dir() else name)
    return names


def is_inside(root: Path, path: Path) -> bool:
    """Whether it is a file of the folder: no folder or device, and no link on the way to it.

    In the cache of the Hub's client, though, every file of a snapshot is a link to a blob of the same repository.
    """
    name = path.relative_to(root)
    try:
        root, real = root.resolve(), path.resolve()
        if not stat.S_ISREG(real.stat().st_mode):
            return False
    except (OSError, RuntimeError):  # it is gone, or the links go round in a circle
        return False
    in_cache = root.parent.name == "snapshots" and real.parent == root.parents[1] / "blobs"
    return real == root / name or in_cache


def _entries(root: Path) -> Iterable[Path]:
    """What lies in a folder and in its known folders, by name; these themselves where they are links."""
    for path in sorted(root.iterdir()):
        if path.name in FOLDERS and path.is_dir() and not path.is_symlink():
            yield from sorted(path.iterdir())
        else:
            yield path
