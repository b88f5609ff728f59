"""The flags that say which images are taken."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_vitcompress import CompressionReport
from support.models import DIGITS
from support.pictures import as_dataset
from support.terminal import Run, one_line, running_commands  # noqa: F401  (the fixture "run")

NAMES = tuple(str(digit) for digit in range(10))


@pytest.fixture
def photos(tmp_path: Path, pictures: list[Image.Image]) -> Path:
    """Shards of 20 images to train on, and of 12 to test on."""
    (tmp_path / "photos").mkdir()
    for split, count in (("train", 20), ("test", 12)):
        rows = as_dataset(pictures[:count], [index % 10 for index in range(count)], NAMES)
        rows = rows.add_column("shifted", [(index + 1) % 10 for index in range(count)])
        rows.to_parquet(tmp_path / "photos" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "photos"


@pytest.mark.filterwarnings("ignore::hf_vitcompress.errors.DataWarning")
def test_evaluate_takes_test_and_the_flags_take_others(run: Run, photos: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"

    def judged(*flags: str) -> tuple[str, str, int, str]:
        outcome = run("evaluate", DIGITS / "model", "--data", photos, "--json", figures, "--quiet", *flags)
        assert outcome.code == 0, outcome.err
        found = json.loads(figures.read_text())
        evaluation = found["evaluation"]
        return found["data"], evaluation["split"], evaluation["labelled"], evaluation["labels"]

    by_name = "by name (10 of 10 classes), from the column 'label'"
    assert judged() == ("photos, split test", "test", 12, by_name)
    assert judged("--split", "train") == ("photos, split train", "train", 20, by_name)
    assert judged("--label-column", "shifted")[3] == "by index, from the column 'shifted'"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--split", "dev"), "no split 'dev'"),
        (("--data-config", "large"), "is on this disk"),
        (("--revision", "main"), "is on this disk"),
        (("--image-column", "photo"), "no column 'photo' (--image-column)"),
        (("--label-column", "species"), "no column 'species' (--label-column)"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "compress"])
def test_images_are_refused_before_the_model_is_looked_for(
    command: str, flags: tuple[str, ...], said: str, run: Run, photos: Path, tmp_path: Path
) -> None:
    output = ("--output", tmp_path / "small") if command == "compress" else ()
    outcome = run(command, tmp_path / "no-model", "--data", photos, "--quiet", *output, *flags)
    assert outcome.code == 1
    assert said in one_line(outcome.err)


@pytest.mark.filterwarnings(
    "ignore::hf_vitcompress.errors.CalibrationWarning", "ignore::hf_vitcompress.errors.DataWarning"
)
def test_compress_takes_train_and_tests_on_test(run: Run, photos: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    outcome = run(
        *("compress", DIGITS / "model", "--data", photos, "--test", photos, "--output", small, "--quiet"),
        *("--keep-ratio", "0.7", "--measuring-images", "0"),
    )
    assert outcome.code == 0, outcome.err
    report = CompressionReport.load(small)
    assert (report.calibration_images, report.calibration_split) == (20, "train")
    assert report.evaluation is not None
    assert (report.evaluation.images, report.evaluation.split) == (12, "test")
