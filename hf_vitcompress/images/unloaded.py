"""What stands for an image processor that cannot be loaded here: it refuses pictures, and its file goes along."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from transformers.utils import IMAGE_PROCESSOR_NAME

from ..errors import DataError

INSTEAD = "pass another with image_processor=…, or give ready `pixel_values`"


class UnloadedProcessor:
    """Stands for an image processor that cannot be loaded here.

    Ready `pixel_values` need none, so this is an error where pictures meet it, and not before.

    Attributes:
        settings: what its file says.
        reason: why it cannot be loaded and what to do, one sentence.
        code: files of Python beside it that its settings name, by name.
    """

    def __init__(self, settings: Mapping[str, Any], reason: str, code: Mapping[str, bytes]) -> None:
        self.settings, self.reason, self.code = dict(settings), reason, dict(code)

    @classmethod
    def of(cls, name: str, settings: Mapping[str, Any], error: Exception) -> "UnloadedProcessor":
        """Of what was raised when the processor beside the model `name` was loaded."""
        return cls(settings, f"The image processor beside {name!r} {_why(settings, error)}.", _code(name, settings))

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse pictures.

        Raises:
            DataError: always.
        """
        raise DataError(self.reason)

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write its settings into `folder` as they were, for wherever it can be loaded."""
        text = json.dumps(self.settings, indent=2, sort_keys=True) + "\n"
        (Path(folder) / IMAGE_PROCESSOR_NAME).write_text(text, encoding="utf-8")
        for name, content in self.code.items():
            (Path(folder) / name).write_bytes(content)


def _why(settings: Mapping[str, Any], error: Exception) -> str:
    """Why it cannot be loaded and what to do, without a full stop."""
    sort = settings.get("image_processor_type")
    if (package := _missing_package(error)) is not None:
        return f"({sort}) needs {package}: `pip install {package}`, or {INSTEAD}"
    if "trust_remote_code" in str(error):
        return (
            "runs code of its own, which is not run unasked. If you trust it, load it in Python with "
            "`AutoImageProcessor.from_pretrained(…, trust_remote_code=True)` and pass it with image_processor=…"
        )
    if sort is None:
        return f"does not say of what class it is (image_processor_type in its file): {INSTEAD}"
    return f"is a {sort}, which this version of transformers lacks: `pip install --upgrade transformers`, or {INSTEAD}"


def _missing_package(error: Exception) -> str | None:
    """What to give pip; `None` if nothing is missing."""
    if not isinstance(error, ImportError):
        return None
    named = re.search(r"requires the (?:🤗 )?(\w[\w-]*) library", str(error))
    package = named[1].lower() if named else (error.name or "").partition(".")[0]
    return {"opencv": "opencv-python", "pil": "pillow"}.get(package, package) or None


def _code(name: str, settings: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of its own code that lie beside it in the folder `name`."""
    classes = settings.get("auto_map")
    modules = {
        f"{path.split('.')[0]}.py"
        for path in dict(classes or {}).values()
        if isinstance(path, str) and "--" not in path
    }
    return {file: (Path(name) / file).read_bytes() for file in sorted(modules) if (Path(name) / file).is_file()}
