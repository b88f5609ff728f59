"""Small folders that look like results, without a model in them."""

import json
from pathlib import Path

from hf_vitcompress.runtime.outputs import Way, reserved

PEOPLES = {
    "LICENSE": "theirs",
    "LICENSES/MIT.txt": "theirs",
    "notes.txt": "theirs",
    "photo.png": "theirs",
    "onnx/model.onnx": "theirs",
    ".git/HEAD": "theirs",
    "training_args.bin": "theirs",
}
"""What people and their tools put beside a model."""


def files(content: str, shards: int = 1) -> dict[str, str]:
    """Files of a result, by name; all hold `content`."""
    config = json.dumps({"model_type": "vitcompress_vit", "content": content})
    weights = {f"model-{n:05}-of-{shards:05}.safetensors": content for n in range(1, shards + 1)}
    weights = {"model.safetensors": content} if shards == 1 else weights
    return {"config.json": config, **weights, "modeling_factored.py": content, "compression_report.json": content}


def fill(folder: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def write_result(folder: Path, content: str, way: Way = "new", shards: int = 1) -> None:
    """As a command writes one; of the card that is there the last line is kept."""
    with reserved(folder, way) as output, output.replaced() as new:
        card = new / "README.md"
        kept = card.read_text().splitlines()[-1:] if card.exists() else ["no words"]
        fill(new, {**files(content, shards), "README.md": "\n".join([content, *kept])})


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder but the manifest."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if name != ".vitcompress-files.json"}
