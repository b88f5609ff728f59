"""Lets mkdocstrings read `Annotated[kind, …, Doc("…")]`: the field's type is `kind`, and its docstring is the text.

An extension of griffe; `mkdocs.yml` names this file under `extensions` of the Python handler's options.
"""

import ast
from typing import Any

import griffe


class FieldDocs(griffe.Extension):
    """Unwraps the annotations of the settings."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Called for every attribute as it is read, before signatures of dataclasses are made."""
        annotation = attr.annotation
        if not isinstance(annotation, griffe.ExprSubscript) or annotation.canonical_path != "typing.Annotated":
            return
        kind, *beside = annotation.slice.elements
        attr.annotation = kind
        for entry in beside:
            if isinstance(entry, griffe.ExprCall) and str(entry.function) == "Doc":
                text = ast.literal_eval(str(entry.arguments[0]))
                attr.docstring = griffe.Docstring(text, lineno=attr.lineno, parent=attr)
