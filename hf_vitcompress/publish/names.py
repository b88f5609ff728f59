"""Which files of a folder are for others: those of known names that really lie in it."""

import json
import re
import stat
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from ..configuration_factored import TRAVELLING_FILES
from ..configuration_timm import FILES as TIMM_FILES
from ..modeling_factored import CARD_FILE, INDEX_FILE, WEIGHTS
from ..report.report import FIGURE_FILE, REPORT_FILE, REPORT_NAME

RECIPE_FILE = "compression_recipe.yaml"
PLAN_FILE = "compression_plan.json"
RECORD_FILES = (RECIPE_FILE, PLAN_FILE, REPORT_FILE, f"{REPORT_NAME}.md", FIGURE_FILE)

_PROCESSOR = r"\w*processor\w*_config\.json"
_VOCABULARIES = (
    r"(tokenizer|vocab|vocab-src|vocab-tgt|target_vocab|entity_vocab|tekken|normalizer|emoji|byte_maps|word_shape"
    r"|word_pronunciation)\.json|(vocab|merges|dict)\.txt|bpe\.codes|prophetnet\.tokenizer|(source|target)\.spm"
    r"|(spiece|spm|spm_char|sentencepiece|sentencepiece\.bpe|tokenizer|tiktoken)\.model(\.v\d+)?|\w+\.tiktoken"
)
"""What the tokenizers of transformers save their vocabularies to."""
_TOKENIZER = rf"({_VOCABULARIES}|(tokenizer_config|special_tokens_map|added_tokens)\.json|chat_template\.(json|jinja))"
_TEXT = (
    rf"(\w+_tokenizer/)?{_TOKENIZER}|additional_chat_templates/[\w-]+\.jinja|(generation|audio_tokenizer)_config\.json"
)
"""What a model that takes text needs besides; further tokenizers of a processor have folders of their own."""
_TERMS = r"(LICEN[CS]E|NOTICE|COPYING)([-_][\w+-]+(\.\d+)?)?(\.(txt|md|rst|html))?|LICENSES/[\w+-]+(\.\d+)*(-\w+)*\.txt"

RECORD = re.compile("|".join([*map(re.escape, RECORD_FILES), r"compression_\w+\.md"]))
ALONG = re.compile("|".join([RECORD.pattern, _TERMS, _PROCESSOR, _TEXT]))
"""What goes wherever the weights go: the image processor's file, too, where it cannot be loaded here."""

_PROGRAMS = {
    "onnx": r"\w+\.onnx(\.data)?",
    "openvino": r"\w+\.(xml|bin)",
    "executorch": r"\w+\.pte",
    "torch-export": r"\w+\.pt2",
}
"""By format, the files of a program; its folder has the name of the format."""
_BESIDE_PROGRAMS = rf"(config|export|export_report)\.json|{ALONG.pattern}"

PUBLISHED = re.compile(
    "|".join(
        [
            *map(re.escape, ("config.json", INDEX_FILE, *TRAVELLING_FILES, *TIMM_FILES)),
            WEIGHTS.pattern,
            ALONG.pattern,
            *(rf"{folder}/({files}|{_BESIDE_PROGRAMS})" for folder, files in _PROGRAMS.items()),
        ]
    )
)
"""What goes to the Hub with the card; nothing else in the folder does."""

FOLDERS = re.compile("|".join([*_PROGRAMS, "LICENSES", "additional_chat_templates", r"\w+_tokenizer"]))
_NAMES_CODE = re.compile(rf"([\w-]+/)?({_PROCESSOR}|tokenizer_config\.json)")
_IMPORT = re.compile(r"^\s*(?:from|import)\s+\.(\w+)", re.MULTILINE)

OURS_ALONE = re.compile(r"\.(git|cache|huggingface|vitcompress|saving).*|\.gitattributes|__pycache__")
"""Names that are never for others and need no mention."""


def goes_along(name: str) -> bool:
    """Whether a file lies beside the weights wherever they go; by its name, with its folder."""
    return ALONG.fullmatch(name) is not None


def is_record(name: str) -> bool:
    """Whether a file tells of the compression, and is not the card."""
    return RECORD.fullmatch(name) is not None


def is_used(name: str) -> bool:
    """Whether a file is one that the model is used with, in whatever form, or states its terms."""
    return goes_along(name) and not is_record(name)


def is_used_by_texts(name: str) -> bool:
    """Whether it is one of these and holds no image processor."""
    return is_used(name) and name not in ("preprocessor_config.json", "processor_config.json")


def is_beside_program(name: str) -> bool:
    """Whether it is one of these that a program for another runtime gets into its folder."""
    return is_used(name) and "/" not in name


def files_within(root: Path, wanted: Callable[[str], object]) -> dict[str, Path]:
    """The files of a folder and of its known folders whose names are wanted, by these; links that leave it are none."""
    found = {path.relative_to(root).as_posix(): path for path in _entries(root)}
    return {name: path for name, path in found.items() if wanted(name) and is_inside(root, path)}


def files_along(root: Path, wanted: Callable[[str], object] = goes_along) -> dict[str, Path]:
    """The files of a folder whose names are wanted, and the code of their processors and tokenizers, by name."""
    present = files_within(root, lambda _: True)
    code = code_of(present.keys(), lambda name: present[name].read_bytes())
    return {name: path for name, path in present.items() if wanted(name) or name in code}


def published_files(root: Path) -> dict[str, Path]:
    """By their names on the Hub; without the card."""
    return files_along(root, PUBLISHED.fullmatch)


def left_out(root: Path) -> list[str]:
    """Names of what `published_files` leaves in the folder, links as such; neither the card nor Git's and our own."""
    published = {*published_files(root), CARD_FILE} if is_inside(root, root / CARD_FILE) else {*published_files(root)}
    names = []
    for path in _entries(root):
        name = path.relative_to(root).as_posix()
        if name not in published and not OURS_ALONE.fullmatch(path.name):
            names.append(f"{name} (a link)" if path.is_symlink() else f"{name}/" if path.is_dir() else name)
    return names


def code_of(names: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """Which files are the code of a processor or tokenizer of a class of its own: its config names them.

    Args:
        names: of the files of a folder or repository.
        read: gives the content of one.
    """
    modules = {name: _mapped_modules(read(name)) for name in names if _NAMES_CODE.fullmatch(name)}
    found: set[str] = set()
    while new := {_beside(name, module) for name, own in modules.items() for module in own} & {*names} - found:
        found |= new
        modules = {name: set(_IMPORT.findall(read(name).decode("utf-8", errors="replace"))) for name in new}
    return found


def _beside(name: str, module: str) -> str:
    folder, slash, _ = name.rpartition("/")
    return f"{folder}{slash}{module}.py"


def _mapped_modules(content: bytes) -> set[str]:
    """The modules in the `auto_map` of a config and of those in it; none of a config that is damaged."""
    try:
        config = json.loads(content)
    except (ValueError, RecursionError):
        return set()
    maps = [part.get("auto_map") for part in [config, *_values(config)] if isinstance(part, dict)]
    classes = [known for mapped in maps for known in _values(mapped)]
    paths = [path for known in classes for path in (known if isinstance(known, list) else [known])]
    return {path.partition(".")[0] for path in paths if isinstance(path, str)}


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


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
        if FOLDERS.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield from sorted(path.iterdir())
        else:
            yield path
