"""Which files of a folder this package wrote, and which are somebody's.

Each result has a hidden file with the digests of what was written with it. Results of versions before that are known by
their config, and their files by the names that those versions gave them.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..configuration_factored import MODEL_TYPE_PREFIX, TRAVELLING_FILES
from ..configuration_timm import FILES as TIMM_FILES
from ..modeling_factored import CONFIG_FILE, MANIFEST_FILE, TRAINER_FILE, holds_weights
from .files import file_digest

FORMAT_VERSION = 1

EXPORT_REPORT_FILE = "export_report.json"

FORMER_NAMES = re.compile(
    r"compression_(recipe\.yaml|plan\.json|report\.(json|md|png))|((video_)?(pre)?processor_)?config\.json"
)
"""What versions without a manifest wrote beside weights and code."""
FORMER_EXPORT_NAMES = ("config.json", "export.json", "preprocessor_config.json", EXPORT_REPORT_FILE)

PEOPLE = re.compile(
    r"(README|LICEN[SC]E|NOTICE|COPYING|CITATION|CHANGELOG|AUTHORS)[^/]*"
    r"|.+\.(md|txt|rst|pdf|png|jpe?g|gif|svg|webp|ipynb|bib|cff)",
    re.IGNORECASE,
)
"""Names of files that people write beside models. One that is there already is kept, the card's own part excepted."""
BESIDE = re.compile(
    r"\.git|\.gitattributes|\.gitignore|\.cache|\.huggingface|\.DS_Store|Thumbs\.db|\.ipynb_checkpoints|__pycache__"
    r"|LICEN[SC]ES|assets|images|figures|docs|runs|logs|onnx|openvino|executorch|torch-export"
    r"|checkpoint-\d+|training_args\.bin|trainer_state\.json|(all|train|eval|test|predict)_results\.json"
    r"|adapter_(config\.json|model\.safetensors)|generation_config\.json|chat_template\.(jinja|json)"
    r"|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
)
"""Names of other things that people, Git and libraries put beside models."""
TEMPORARY = re.compile(r"\.+vitcompress[.-].*|\.saving-.*|\..+\.(part|lock|old)")
"""Names that our own unfinished work has inside a folder."""


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Digests of the files that were written, by name; `None` without a manifest or where it is damaged."""
    content = _json(folder / MANIFEST_FILE)
    files = content.get("files") if content.get("version") == FORMAT_VERSION else None
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        return None
    return {name: digest for name, digest in files.items() if is_inside(folder, name)}


def manifest_text(files: dict[str, str]) -> str:
    """What `read_manifest` reads."""
    return json.dumps({"version": FORMAT_VERSION, "files": dict(sorted(files.items()))}, indent=2) + "\n"


def is_inside(folder: Path, name: str) -> bool:
    """Whether a relative name stays inside a folder, also through links."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def written_files(folder: Path) -> dict[str, str]:
    """The files of a folder that this package wrote, with the digests that they had then.

    Where there is no manifest, those are the files with the names of earlier versions, as they are now.
    """
    known = read_manifest(folder)
    if known is not None:
        return known
    return {name: file_digest(folder / name) for name in sorted(set(_former_files(folder)))}


def is_result(folder: Path) -> bool:
    """Whether the model or program in a folder was written by this package, and not replaced by another since."""
    config, manifest = folder / CONFIG_FILE, read_manifest(folder)
    if _is_factored(config) or (_is_former_export(folder) and manifest is None):
        return True
    if manifest is None:
        # A save without the package was interrupted: the code is there, the config not yet.
        return not config.exists() and (folder / TRAVELLING_FILES[-1]).is_file()
    if not config.exists():
        return True
    return CONFIG_FILE in manifest and file_digest(config) == manifest[CONFIG_FILE]


def holds_another_model(folder: Path) -> bool:
    """Whether a folder holds a model that this package did not write, other than that of a Trainer's own folder."""
    if is_result(folder) or (folder / TRAINER_FILE).exists():
        return False
    return (folder / CONFIG_FILE).exists() or any(holds_weights(path.name) for path in folder.iterdir())


def entries(folder: Path) -> list[Path]:
    """What is in a folder, except for unfinished work of ours."""
    return sorted(path for path in folder.iterdir() if not TEMPORARY.fullmatch(path.name))


def foreign_files(folder: Path) -> list[str]:
    """What is in a result's folder, and neither of ours nor what people put beside models."""
    ours = {MANIFEST_FILE, *(PurePosixPath(name).parts[0] for name in written_files(folder))}
    names = [path.name for path in entries(folder)]
    return [name for name in names if name not in ours and not _is_peoples_or_beside(name)]


def changed_files(folder: Path) -> list[str]:
    """Files that we wrote and that somebody has changed since, other than those that are kept anyway."""
    files = {name: digest for name, digest in written_files(folder).items() if not is_peoples(name)}
    return [name for name, digest in files.items() if has_changed(folder / name, digest)]


def has_changed(path: Path, digest: str | None) -> bool:
    """Whether something else is there than a file of this digest; nothing at all has not changed."""
    return path.exists() and (not path.is_file() or file_digest(path) != digest)


def is_peoples(name: str) -> bool:
    """Whether a file of this name is somebody's where it was there before, by name."""
    return PEOPLE.fullmatch(name) is not None and FORMER_NAMES.fullmatch(name) is None


def is_former_name(name: str) -> bool:
    """Whether versions without a manifest, or the code beside a model alone, wrote files of this name."""
    return (
        name in (*TRAVELLING_FILES, *TIMM_FILES, *FORMER_EXPORT_NAMES)
        or holds_weights(name)
        or bool(FORMER_NAMES.fullmatch(name))
    )


def _is_peoples_or_beside(name: str) -> bool:
    return is_peoples(name) or BESIDE.fullmatch(name) is not None


def _former_files(folder: Path) -> Iterator[str]:
    if _is_former_export(folder):
        program = _json(folder / EXPORT_REPORT_FILE)["files"]
        yield from (n for n in (*FORMER_EXPORT_NAMES, *program) if is_inside(folder, n) and (folder / n).is_file())
    elif is_result(folder):
        for path in folder.iterdir():
            if is_former_name(path.name) and path.is_file() and not path.is_symlink():
                yield path.name


def _is_former_export(folder: Path) -> bool:
    report = _json(folder / EXPORT_REPORT_FILE)
    return isinstance(report.get("files"), dict) and isinstance(report.get("format"), str)


def _is_factored(config: Path) -> bool:
    return str(_json(config).get("model_type", "")).startswith(MODEL_TYPE_PREFIX)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
