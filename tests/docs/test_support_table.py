"""The table of supported models in `docs/models.md` is the one that the code makes."""

from hf_vitcompress.architectures.families import FAMILIES
from hf_vitcompress.architectures.layers import LayerInfo, find_layers, has_standard_attention
from hf_vitcompress.architectures.registration import MODEL_TYPES
from support.models import REPOSITORY
from support.zoo import HEADS
from support_table import BEGIN, TITLES, attention_of, renew, support_table


def rows() -> dict[str, list[str]]:
    """Model type → cells."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in support_table().splitlines()[2:]]
    return {row[1].strip("`"): row for row in cells}


def test_the_page_has_the_table_of_this_code() -> None:
    text = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
    assert BEGIN in text
    assert renew(text) == text, "renew it with `make support`"


def test_every_family_and_every_registered_type_has_one_row() -> None:
    assert set(rows()) == set(MODEL_TYPES)
    assert all(row[3] == "as the model in it" for model_type, row in rows().items() if model_type not in FAMILIES)


def test_every_type_has_a_title() -> None:
    assert set(MODEL_TYPES) <= {*FAMILIES, *TITLES}


def test_a_family_whose_queries_keys_and_values_are_one_layer_has_no_module_with_queries() -> None:
    layer = LayerInfo("blocks.0.attn.qkv", "qkv", 0, "blocks.0.qkv", 8, 24)
    assert attention_of([layer]) is None


def test_what_it_says_of_attention_is_what_models_have() -> None:
    table = rows()
    for head in HEADS:
        model = head.dense()
        attention = attention_of(find_layers(model))
        joint = attention is not None and has_standard_attention(model, attention)
        said = table[head.family][3]
        assert said == "as the model in it" or (said == "yes") == joint, head
