"""The table of supported models: made from `FAMILIES` and transformers' own Auto classes.

`python docs/support_table.py docs/models.md` renews the table between the two marks in that file.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from accelerate import init_empty_weights
from transformers import PreTrainedModel

from hf_vitcompress.architectures.families import FAMILIES
from hf_vitcompress.architectures.layers import LayerInfo, find_layers, has_standard_attention, may_prune_heads
from hf_vitcompress.architectures.merging import why_not_merge
from hf_vitcompress.architectures.registration import MODEL_TYPES
from hf_vitcompress.configuration_factored import dense_config_class, heads_of
from hf_vitcompress.report.tables import markdown_table

BEGIN, END = "<!-- support: begin -->", "<!-- support: end -->"
HEADER = (
    "model",
    "`model_type`",
    "heads",
    "queries and keys share a projection",
    "whole heads can be removed",
    "tokens can be merged",
)
TITLES = {"depth_anything": "Depth Anything", "upernet": "UperNet", "llava": "LLaVA"}
"""Names of the model types without a row of their own, which are registered because of the model they contain."""


def support_table() -> str:
    """Markdown; one row for each model type, in the order of the tables."""
    rows = [_row(family.title, model_type) for model_type, family in FAMILIES.items() if model_type in MODEL_TYPES]
    for model_type in MODEL_TYPES:
        if model_type not in FAMILIES:
            rows.append((TITLES.get(model_type, model_type), f"`{model_type}`", _heads(model_type), *_AS_INSIDE))
    return markdown_table(HEADER, rows)


_AS_INSIDE = ("as the model in it", "as the model in it", "no")


def _row(title: str, model_type: str) -> tuple[str, ...]:
    model = _without_storage(model_type)
    attention = attention_of(find_layers(model))
    known = [attention is not None and answer(model, attention) for answer in (has_standard_attention, may_prune_heads)]
    known.append(why_not_merge(model) is None)
    return (title, f"`{model_type}`", _heads(model_type), *("yes" if answer else "no" for answer in known))


def attention_of(layers: Iterable[LayerInfo]) -> str | None:
    """Name of the first module with queries of its own; `None` where one layer makes queries, keys and values."""
    return next((layer.parent for layer in layers if layer.role == "q"), None)


def _heads(model_type: str) -> str:
    """What the Auto classes are for; in parentheses where the model also takes text."""
    words = []
    for name, classes in heads_of(model_type).items():
        word = re.sub("(?<=[a-z])(?=[A-Z])", " ", re.sub("^(AutoModelFor|Auto)", "", name)).lower()
        word = {"model": "headless", "multimodal lm": "multimodal language model"}.get(word, word)
        words.append(word if classes[0].main_input_name == "pixel_values" else f"({word})")
    return ", ".join(words)


def _without_storage(model_type: str) -> PreTrainedModel:
    """The first head that is registered, of the default size."""
    model_class = next(iter(heads_of(model_type).values()))[0]
    with init_empty_weights(include_buffers=True):
        return model_class(dense_config_class(model_type)())


def renew(text: str) -> str:
    """`text` with the table between the marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{support_table()}{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renew(path.read_text(encoding="utf-8")), encoding="utf-8")
