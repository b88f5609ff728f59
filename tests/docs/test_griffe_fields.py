"""The reference pages read what stands beside each setting."""

import pytest

from hf_vitcompress.config import GROUPS, fields_of

griffe = pytest.importorskip("griffe", reason="griffe is not installed (pip install 'hf-vitcompress[docs]')")


def test_the_reference_has_the_type_and_the_text_of_every_setting() -> None:
    from griffe_fields import FieldDocs

    package = griffe.load("hf_vitcompress.config", extensions=griffe.load_extensions(FieldDocs()))
    for group in GROUPS.values():
        members = package["groups"][group.__name__].members
        for setting in fields_of(group):
            attribute = members[setting.name]
            assert attribute.docstring.value == setting.doc
            assert "Annotated" not in str(attribute.annotation)
            assert "Annotated" not in str(members["__init__"].parameters[setting.name].annotation)
