"""The flags that say which part of a data set is taken, shared by the commands that read images."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..images.options import DataOptions

FLAGS = {
    "split": ("--split", "Split of --data; by default {split}."),
    "data_config": ("--data-config", "Configuration of a Hub data set that has several."),
    "revision": ("--revision", "Branch, tag or commit of a Hub data set."),
    "image_column": ("--image-column", "Column of images, where there are several."),
    "label_column": ("--label-column", "Column of labels; by default label or another of the usual names."),
}


def with_data_options(split: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of `DataOptions`, and pass it those, called `options`.

    Args:
        split: that is taken by default, for the help.
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            from ..images.options import DataOptions

            flags = {name: arguments.pop(name) for name in FLAGS}
            flags["config"] = flags.pop("data_config")
            command(options=DataOptions(**flags), **arguments)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        parameters += [_option(name, flag, text.format(split=split)) for name, (flag, text) in FLAGS.items()]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorated


def options_beside(options: "DataOptions", same: bool, default: "DataOptions") -> "DataOptions":
    """What `options` of --data say about other images: of the same data set everything but the split.

    Args:
        same: whether the other images are of the same data set.
        default: for the split.
    """
    found = replace(default, image_column=options.image_column, label_column=options.label_column)
    return replace(found, config=options.config, revision=options.revision) if same else found


def _option(name: str, flag: str, help_text: str) -> inspect.Parameter:
    annotation = Annotated[str | None, typer.Option(flag, help=help_text, show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
