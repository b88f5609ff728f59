"""The README's table of what is supported is the one that the code makes."""

from conftest import REPOSITORY
from zoo import HEADS

from hf_vitcompress.families import FAMILIES
from hf_vitcompress.layers import find_layers, has_standard_attention
from hf_vitcompress.modeling_factored import MODEL_TYPES
from hf_vitcompress.support import CONTAINERS, renew, support_table


def rows() -> dict[str, list[str]]:
    """Model type → cells."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in support_table().splitlines()[2:]]
    return {row[1].strip("`"): row for row in cells}


def test_the_readme_has_the_table_of_this_code() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert renew(text) == text, "renew it with `make support`"


def test_every_family_and_every_registered_type_has_one_row() -> None:
    assert set(rows()) == set(MODEL_TYPES) == {*FAMILIES, *CONTAINERS}


def test_what_it_says_of_attention_is_what_models_have() -> None:
    table = rows()
    for head in HEADS:
        model = head.dense()
        attention = next(layer.parent for layer in find_layers(model) if layer.role == "q")
        said = table[head.family][3]
        assert said == "as the model in it" or (said == "yes") == has_standard_attention(model, attention), head
