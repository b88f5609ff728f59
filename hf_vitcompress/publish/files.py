"""Which files of a folder go to the Hub, and whether they are a whole checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..configuration_factored import TRAVELLING_FILES
from ..errors import PublishError
from ..model.loading import load_model
from ..modeling_factored import CARD_FILE, INDEX_FILE, holds_weights
from ..runtime.outputs import complete_exchange
from ..runtime.weights import weight_files

SINGLE_FILE = "model.safetensors"

PUBLISHED = (
    "config.json",
    INDEX_FILE,
    *TRAVELLING_FILES,
    "*processor*_config.json",
    "compression_*",
    "LICENSE*",
    "NOTICE*",
    *(f"{name}/*" for name in ("onnx", "openvino", "executorch", "torch-export")),
)
"""What goes to the Hub with the weights; nothing else in the folder does (checkpoints, training arguments, caches)."""


def checked_folder(folder: str | Path) -> Path:
    """The absolute path of a folder with all its weights.

    Raises:
        PublishError: the folder is not a checkpoint, or a file is missing or damaged.
    """
    complete_exchange(folder)
    root = Path(folder).resolve()
    index = root / INDEX_FILE
    weights = weight_files(root)
    if not (root / "config.json").is_file() or not weights or not (index.is_file() or (root / SINGLE_FILE) in weights):
        raise PublishError(
            f"{str(folder)!r} is no checkpoint: it has no config.json, or no {SINGLE_FILE}. Give a folder made by "
            "`vitcompress compress` or save_pretrained."
        )
    try:
        json.loads((root / "config.json").read_text(encoding="utf-8"))
        wanted = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
        missing = sorted({name for name in wanted if not (root / name).is_file()})
        for path in weights:
            safe_open(path, framework="pt").__enter__().__exit__(None, None, None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise PublishError(f"{str(folder)!r} is damaged: {error}. Copy it again, or save the model again.") from error
    if missing:
        raise PublishError(f"{str(folder)!r} lacks {', '.join(missing)}. Copy it again, or save the model again.")
    return root


def published_files(root: Path) -> dict[str, Path]:
    """By their names on the Hub."""
    files = {path for pattern in PUBLISHED for path in root.glob(pattern) if path.is_file()}
    return {path.relative_to(root).as_posix(): path for path in sorted({*files, *weight_files(root)})}


def resharded(root: Path, max_shard_size: int | str, folder: Path) -> Path:
    """`folder`, with what `root` publishes and its weights in files of another size."""
    load_model(root).save_pretrained(folder, max_shard_size=max_shard_size)
    files = {name: path for name, path in published_files(root).items() if not holds_weights(name)}
    link_files({name: path for name, path in files.items() if not (folder / name).exists()}, folder)
    link_files({CARD_FILE: root / CARD_FILE}, folder)
    return folder


def link_files(files: Mapping[str, Path], folder: Path) -> None:
    """Let the files that there are appear under their names in `folder`."""
    for name, path in files.items():
        if path.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
