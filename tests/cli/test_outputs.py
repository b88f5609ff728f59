"""Where the commands write, and what they refuse to replace."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vitcompress import CompressionConfig, CompressionReport, ViTCompressor
from support.models import DIGITS
from support.terminal import Run, one_line, running_commands  # noqa: F401  (the fixture "run")

MODEL = str(DIGITS / "model")
CALIBRATION = str(DIGITS / "calibration.parquet")
TEST = str(DIGITS / "test.parquet")
RECIPE = ["--rank-multiple", "2", "--precision", "float32", "--measuring-images", "0"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compressed digits (`small`) and their statistics."""
    folder = tmp_path_factory.mktemp("first")
    config = CompressionConfig(keep_ratio=0.4, rank_multiple=2, precision="float32", measuring_images=0)
    compressor = ViTCompressor(config, progress=False)
    small = compressor.compress(MODEL, CALIBRATION, checkpoint=folder / "statistics.safetensors")
    small.save_pretrained(folder / "small")
    return folder


@pytest.fixture(scope="module")
def statistics(first: Path) -> Path:
    return first / "statistics.safetensors"


@pytest.fixture
def small(first: Path, tmp_path: Path) -> Path:
    """A copy of the compressed digits."""
    return Path(shutil.copytree(first / "small", tmp_path / "small"))


def same_weights(a: Path, b: Path) -> bool:
    one, two = (load_file(folder / "model.safetensors") for folder in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_overwrite_replaces_the_earlier_result_and_nothing_else(
    run: Run, first: Path, statistics: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(first / "small", tmp_path / "out")
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(f"{card}\nmine\n")
    for name in ("LICENSE", "notes.txt", "onnx/model.onnx"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    arguments = ["--statistics", statistics, *RECIPE, "--keep-ratio", 0.3, "--output", out, "--overwrite"]
    done = run("compress", MODEL, *arguments, "-q")
    assert done.code == 0, done.err
    assert not same_weights(out, first / "small")
    assert "onnx/ in it is a program of the model that was there before" in done.out
    assert {path.name for path in out.iterdir()} == {
        "LICENSE",
        "notes.txt",
        "onnx",
        *(path.name for path in (first / "small").iterdir()),
    }
    assert (out / "README.md").read_text().endswith("mine\n")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_is_or_holds_an_input_is_refused(run: Run, statistics: Path, tmp_path: Path) -> None:
    model, plan = shutil.copytree(MODEL, tmp_path / "model"), tmp_path / "plans" / "plan.json"
    plan.parent.mkdir()
    plan.write_text('{"layers": {}}')
    own = shutil.copy(statistics, tmp_path / "statistics.safetensors")
    inputs = [model, "--statistics", own, "--plan", plan, "--test", CALIBRATION]
    before = sorted(path for path in tmp_path.rglob("*"))
    for output in ("model", "model/small", ".", "plans", "statistics.safetensors"):
        done = run("compress", *inputs, *RECIPE, "--output", tmp_path / output, "--overwrite", "-q")
        assert done.code == 1
        assert re.search(r"(is|contains|lies inside) the (model|statistics|plan)", one_line(done.err)), done.err
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--output", "--data", "--statistics", "--plan", "--test", "--validation"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_option_that_an_unset_variable_left_empty_is_refused(run: Run, option: str, value: str) -> None:
    given = {"--output": "out", "--data": str(CALIBRATION), option: value}
    done = run("compress", MODEL, *(part for pair in given.items() for part in pair))
    assert done.code == 1
    assert f"{option} is empty" in one_line(done.err)


# ---- single files


def test_figures_go_into_a_folder_that_is_made_and_are_renewed(run: Run, small: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = run("evaluate", small, "--data", TEST, "--json", tmp_path / "new" / "figures.json", "-q")
        assert done.code == 0, done.err
    assert json.loads((tmp_path / "new" / "figures.json").read_text())["evaluation"]["images"] > 0


@pytest.mark.parametrize("command", ["evaluate", "export"])
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mine.json", "exists and would be replaced"),
        ("small/config.json", "exists and would be replaced"),
        ("small", "is the model"),
        ("mine.json/figures.json", "Not a directory"),
        ("x" * 300, "too long a name"),
    ],
)
def test_figures_replace_nothing_else_and_that_is_known_before(
    command: str, place: str, message: str, run: Run, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    data = ["--data", "./not-looked-for"] if command == "evaluate" else ["--to", "torch-export"]
    done = run(command, small, *data, "--json", tmp_path / place, "-q")
    assert done.code == 1
    assert message in one_line(done.err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_images_get_no_files_of_ours(run: Run, statistics: Path, small: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    commands = [
        ["compress", MODEL, "--data", photos, "--output", photos / "out"],
        ["compress", MODEL, "--data", photos, "--output", tmp_path / "out", "--statistics", photos / "s.safetensors"],
        ["inspect", MODEL, "--data", photos, "--figure", photos / "a.png"],
        ["plan", MODEL, "--data", photos, "--statistics", statistics, "--output", photos / "plan.json"],
        ["evaluate", small, "--data", photos, "--json", photos / "figures.json"],
    ]
    for command in commands:
        done = run(*command, "-q")
        assert done.code == 1
        assert "lies inside the images" in one_line(done.err)
    assert list(photos.iterdir()) == []


def test_a_plan_is_replaced_only_where_that_is_asked_for(run: Run, statistics: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    command = ["plan", MODEL, "--statistics", statistics, *RECIPE, "--output", plan, "-q"]
    assert run(*command).code == 0
    plan.write_text(plan.read_text().replace('"rank": ', '"rank":  '))  # as edited by a person
    edited = plan.read_text()
    assert "would be replaced" in one_line(run(*command).err)
    assert plan.read_text() == edited
    assert run(*command, "--overwrite").code == 0
    assert plan.read_text() != edited
    plan.write_text('{"mine": 1}')
    assert "would be replaced" in one_line(run(*command, "--overwrite").err)


def test_a_figure_replaces_figures_of_ours_only(
    run: Run, statistics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["inspect", MODEL, "--statistics", statistics, *RECIPE, "-q"]
    assert [run(*command).code for _ in range(2)] == [0, 0]
    shutil.copy(next(Path(DIGITS).parents[1].glob("docs/*.svg")), "inspection.png")
    mine = Path("inspection.png").read_bytes()
    assert "would be replaced" in one_line(run(*command).err)
    assert Path("inspection.png").read_bytes() == mine


def test_updating_a_card_changes_report_and_card_and_nothing_else(run: Run, small: Path) -> None:
    (small / "LICENSE").write_text("mine")
    with (small / "README.md").open("a") as card:
        card.write("\nmine\n")
    before = {path.name: path.read_bytes() for path in small.iterdir()}
    done = run("evaluate", small, "--data", TEST, "--update-card", "-q")
    assert done.code == 0, done.err
    after = {path.name: path.read_bytes() for path in small.iterdir()}
    changed = {name for name in after if before.get(name) != after[name]}
    report = {f"compression_report.{ending}" for ending in ("json", "md")}
    assert changed == {"README.md", ".vitcompress-files.json", *report}
    assert CompressionReport.load(small).evaluation is not None
    assert (small / "README.md").read_text().endswith("mine\n")
