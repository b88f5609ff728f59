"""Images at a path: pictures in folders, tables, archives, and data sets that were saved."""

import glob
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import OnBadImage
from ..errors import DataError, one_line
from .folders import files_in, from_pictures, image_suffixes, split_folder
from .images import ImageSource
from .options import DataOptions, chosen_split, in_split, split_of_file
from .tables import from_dataset, from_splits

TABLES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
"""Files that hold images themselves, and the builder of `datasets` that reads them."""
LISTS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json"}
"""Files that name pictures beside them."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What `imagefolder` reads about the pictures of a folder."""
SAVED = ("dataset_dict.json", "state.json")
"""In a folder that `save_to_disk` wrote."""


def from_path(path: Path, options: DataOptions, on_bad_image: OnBadImage) -> ImageSource:
    """The images in a folder or a file that is there.

    Raises:
        DataError: there is no image, or it cannot be read.
        OSError: a folder cannot be read.
    """
    if options.config or options.revision:
        raise DataError(f"{str(path)!r} is on this disk: a configuration or revision is of a data set on the Hub.")
    if path.is_dir():
        return _from_folder(path, options, on_bad_image)
    suffix = path.suffix.lower()
    if suffix in {**TABLES, **LISTS}:
        return _from_table([path], path.name, options, on_bad_image, named=True)
    if suffix in image_suffixes():
        return from_pictures(path.parent, [path], path.name, on_bad_image)
    raise nothing_found(path)


def nothing_found(path: Path) -> DataError:
    """That there is no image at a path, and what images look like."""
    return DataError(
        f"No image found in {str(path)!r}. Pictures end in .png, .jpg, .webp or another suffix that Pillow reads; "
        f"{', '.join(TABLES)} and folders of save_to_disk work too."
    )


def _from_folder(path: Path, options: DataOptions, on_bad_image: OnBadImage) -> ImageSource:
    import datasets

    if any((path / name).is_file() for name in SAVED):
        saved = _loaded(path, "a data set", lambda: datasets.load_from_disk(str(path)))
        return from_splits(saved, path.name, on_bad_image, options)
    folder, split = (path, None) if _has_metadata(path) else split_folder(path, options)
    name = in_split(path.name, split)
    files = files_in(folder)
    pictures = [file for file in files if file.suffix.lower() in image_suffixes()]
    tables = [file for file in files if file.suffix.lower() in TABLES and file.name not in METADATA]
    # A clone of a Hub data set may have pictures in its README, and a folder of pictures a table of something else.
    are_shards = any(file.suffix.lower() != ".tar" and split_of_file(file.stem) for file in tables)
    if tables and (are_shards or not pictures):
        source = _from_table(tables, name, options, on_bad_image, named=split is not None)
    elif _has_metadata(folder) and pictures:
        loaded = _loaded(folder, "images", lambda: datasets.load_dataset("imagefolder", data_dir=str(folder)))
        only = next(iter(loaded.values())) if len(loaded) == 1 else loaded  # `train` is what it calls a single one
        source = from_splits(only, name, on_bad_image, options)
    elif pictures:
        source = from_pictures(folder, pictures, name, on_bad_image)
    else:
        raise nothing_found(path)
    return replace(source, split=split or source.split)


def _has_metadata(folder: Path) -> bool:
    return any((folder / name).is_file() for name in METADATA)


def _from_table(
    files: Sequence[Path], name: str, options: DataOptions, on_bad_image: OnBadImage, named: bool
) -> ImageSource:
    """The rows of tables of one kind, of one split if their names say which they are of.

    Args:
        named: whether it is known which files are meant.
    """
    import datasets

    split = None
    if not named:
        by_split = _by_split(files)
        if set(by_split) != {None}:
            split = chosen_split([key for key in by_split if key], name, options)
            files, name = by_split[split], in_split(name, split)
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise DataError(f"{name} has {' and '.join(kinds)} files. Name one of them, or a folder of one kind.")
    builder = {**TABLES, **LISTS}[kinds[0]]
    settings = {"sep": "\t"} if kinds[0] == ".tsv" else {}
    paths = [glob.escape(str(file)) for file in files]
    dataset = _loaded(
        files[0], builder, lambda: datasets.load_dataset(builder, data_files=paths, split="train", **settings)
    )
    beside = files[0].parent if kinds[0] in LISTS else None
    return replace(from_dataset(dataset, name, on_bad_image, options, beside), split=split)


def _by_split(files: Sequence[Path]) -> Mapping[str | None, list[Path]]:
    """Files by their split; those that name none are for training, where others name one."""
    found: dict[str | None, list[Path]] = defaultdict(list)
    for file in files:
        found[split_of_file(file.stem)].append(file)
    if len(found) > 1 and None in found:
        found["train"] += found.pop(None)
    return found


def _loaded(path: Path, kind: str, load: Callable[[], Any]) -> Any:
    """What `datasets` makes of the files at `path`.

    Raises:
        DataError: they are damaged.
    """
    from datasets.exceptions import DatasetsError

    try:
        return load()
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise DataError(f"{str(path)!r} cannot be read as {kind}: {one_line(error)}.") from error
