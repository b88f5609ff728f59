"""Whether a folder is a whole checkpoint, and its weights in other shards."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import PublishError
from ..model.loading import load_model
from ..modeling_factored import INDEX_FILE, holds_weights
from ..runtime.outputs import complete_exchange
from ..runtime.weights import weight_files
from .names import is_inside, published_files

SINGLE_FILE = "model.safetensors"


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
    needed = [root / "config.json", *weights, *([index] if index.is_file() else [])]
    if links := [path.name for path in needed if not is_inside(root, path)]:
        raise PublishError(
            f"In {str(folder)!r} {', '.join(links)} {'is a link' if len(links) == 1 else 'are links'} out of the "
            "folder, which is not followed, so that nothing is published by mistake. Put the files themselves there."
        )
    try:
        json.loads((root / "config.json").read_text(encoding="utf-8")).get("model_type")
        wanted = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
        missing = sorted({name for name in wanted if not (root / name).is_file()})
        for path in weights:
            safe_open(path, framework="pt").__enter__().__exit__(None, None, None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise PublishError(f"{str(folder)!r} is damaged: {error}. Copy it again, or save the model again.") from error
    if missing:
        raise PublishError(f"{str(folder)!r} lacks {', '.join(missing)}. Copy it again, or save the model again.")
    return root


def resharded(root: Path, max_shard_size: int | str, folder: Path) -> dict[str, Path]:
    """The published files of `root`, its weights in files of another size, which are written to `folder`."""
    load_model(root).save_pretrained(folder, max_shard_size=max_shard_size)
    kept = {name: path for name, path in published_files(root).items() if not holds_weights(name)}
    return {**published_files(folder), **kept}


def link_files(files: Mapping[str, Path], folder: Path) -> None:
    """Let files appear under their names in `folder`."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path)
