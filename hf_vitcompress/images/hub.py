"""Images in a data set on the Hub, of which no more is loaded than is used."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import OnBadImage
from ..errors import DataError, one_line
from .images import ImageSource
from .options import DataOptions, chosen_split, in_split
from .tables import from_dataset

MANY = 4
"""Where a split has so many times as many images as are used, they are streamed and not downloaded."""
MOST_FILES = 16
"""From so many files images are streamed at most."""


def from_hub(name: str, options: DataOptions, on_bad_image: OnBadImage, limit: int | None) -> ImageSource:
    """The images of one split of a data set on the Hub.

    Args:
        limit: how many images are used; `None`: all.

    Raises:
        DataError: there is no such data set, configuration, revision or split; or it has several configurations, and
            none was chosen.
    """
    try:
        loaded, split = _loaded(name, options, limit)
    except DataError:
        raise
    except Exception as error:  # the Hub client has no common base class for its errors
        raise _refusal(name, options, error) from error
    source = from_dataset(loaded, in_split(name, split), on_bad_image, options)
    return replace(source, hub_id=source.hub_id or name, split=split)


def _loaded(name: str, options: DataOptions, limit: int | None) -> tuple[Any, str | None]:
    """The rows of a split, and its name."""
    import datasets

    chosen = {"name": options.config, "revision": options.revision}
    given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
    files, sizes = outline(name, given)
    names = list(files) or list(sizes)
    if not names:
        loaded = datasets.load_dataset(name, **given)
        split = chosen_split(list(loaded), name, options)
        return loaded[split], split
    split = chosen_split(names, name, options)
    if limit is not None and sizes.get(split, 0) >= MANY * limit:
        return _streamed(datasets.load_dataset(name, split=split, streaming=True, **given), limit), split
    if len(files) > 1 and split in files:
        # By its files: `split=` alone would download and unpack the others, too.
        given |= {"data_files": {split: files[split]}, "verification_mode": "no_checks"}
    return datasets.load_dataset(name, split=split, **given), split


def outline(name: str, given: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Files and numbers of rows by split, as far as they are known without loading anything."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, **given)
    except Exception:  # `load_dataset` says what is wrong, or finds what was loaded before there was no way to the Hub
        return {}, {}
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    sizes = {str(split): info.num_examples or 0 for split, info in (builder.info.splits or {}).items()}
    return files, sizes


def _streamed(stream: Any, count: int) -> Any:
    """The first rows of several files, `count` in all where these have as many: many data sets are sorted by class."""
    import datasets

    features = stream.features
    for column, feature in (features or {}).items():
        if isinstance(feature, datasets.Image):
            stream = stream.cast_column(column, datasets.Image(decode=False))
    parts = min(stream.num_shards, MOST_FILES, count)
    rows: list[dict[str, Any]] = []
    for index in range(parts):
        rows += stream.shard(parts, index).take(-(-(count - len(rows)) // (parts - index)))
    return datasets.Dataset.from_list(rows, features)


def _refusal(name: str, options: DataOptions, error: Exception) -> DataError:
    """What is wrong, and which configurations there are where that is the question."""
    import datasets

    if "config" in str(error).lower():
        try:
            configs = ", ".join(datasets.get_dataset_config_names(name, revision=options.revision))
        except Exception:  # the first error says enough
            configs = ""
        if configs and options.config is None:
            return DataError(f"{name} has several configurations: {configs}. Choose one with --data-config.")
        if configs:
            return DataError(f"{name} has no configuration {options.config!r}; it has {configs} (--data-config).")
    revision = "" if options.revision is None else f" at revision {options.revision!r}"
    return DataError(
        f"{name!r} is neither a local folder or file nor a data set that could be loaded{revision}: {one_line(error)}."
    )
