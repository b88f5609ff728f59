"""A model card as it lies on a disk or on the Hub: metadata and text, none of which may get lost when it is rewritten.

`huggingface_hub.ModelCard` is not enough for cards that people edit: it fails on metadata that are damaged, drops of a
model index what it does not know, and reads the language code `no` as false.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers.utils import logging

HEADER = re.compile(r"\s*---\n(?:(.*?)\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)

logger = logging.get_logger(__name__)


@dataclass
class Card:
    """Metadata, and the Markdown below them."""

    metadata: dict[str, Any]
    text: str

    @classmethod
    def parse(cls, content: str) -> "Card":
        """Metadata that cannot be read become part of the text, where somebody will see and mend them."""
        content = content.replace("\r\n", "\n").removeprefix("\ufeff")
        found = HEADER.match(content)
        if found is None:
            return cls({}, content.strip())
        header, text = found[1] or "", content[found.end() :].strip()
        try:
            metadata = yaml.load(header, _Loader)
        except (yaml.YAMLError, ValueError, RecursionError, TypeError):  # such as a list for a key
            metadata = header
        if metadata is None or isinstance(metadata, dict):
            return cls({key: value for key, value in (metadata or {}).items() if value is not None}, text)
        logger.warning("The metadata of the model card cannot be read; they are kept as text.")
        return cls({}, f"```yaml\n{header.strip()}\n```\n\n{text}".strip())

    @classmethod
    def load(cls, path: str | Path) -> "Card":
        """Of a file, in UTF-8 or else in whatever gives every byte a character."""
        content = Path(path).read_bytes()
        try:
            return cls.parse(content.decode("utf-8"))
        except UnicodeDecodeError:
            return cls.parse(content.decode("latin-1"))

    def __str__(self) -> str:
        header = yaml.safe_dump(self.metadata, sort_keys=False, allow_unicode=True, width=120) if self.metadata else ""
        return f"---\n{header}---\n\n{self.text.strip()}\n"


class _Loader(yaml.SafeLoader):
    """Like the Hub's it knows YAML 1.2, in which `no` is a word and a language."""


BOOLEAN = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(BOOLEAN, re.compile("true|false", re.IGNORECASE), list("tTfF"))
