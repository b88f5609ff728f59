"""What of a folder is for others: files of known names that lie in it, and nothing that a link leads to."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_vitcompress.errors import PublishError
from hf_vitcompress.publish.cards import write_card
from hf_vitcompress.publish.names import goes_along, left_out, published_files
from hf_vitcompress.publish.push import push_folder
from hf_vitcompress.publish.saved import restored_companions
from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.published import PUBLISHED, TELL_TALE, contents
from support.pushing import load

SECRET = f"{TELL_TALE}-secret".encode()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder beside the model's, with what must not get out."""
    folder = tmp_path / "private"
    folder.mkdir()
    for name in ("token", "id_rsa", "model.onnx", "config.json", "README.md", "x.txt", "compression_report.json"):
        (folder / name).write_bytes(SECRET)
    return folder


LINKS: dict[str, tuple[str, str]] = {
    "a file": ("LICENSE", "../private/token"),
    "a text": ("compression_notes.md", "../private/token"),
    "a folder": ("onnx", "../private"),
    "a folder of terms": ("LICENSES", "../private"),
    "a file in a folder": ("openvino/model.bin", "../../private/token"),
    "a processor": ("processor_config.json", "../private/token"),
    "a recipe": ("compression_recipe.yaml", "../private/token"),
    "a report": ("compression_report.json", "../private/compression_report.json"),
    "the card": ("README.md", "../private/README.md"),
    "an absolute one": ("NOTICE", "{root}/private/token"),
    "one through another": ("NOTICE.md", "inner"),
    "one to a hidden file": ("NOTICE.txt", ".env"),
    "one to a folder of the folder": ("torch-export", ".hidden"),
    "a circle": ("LICENSE.md", "LICENSE.md"),
    "nothing": ("LICENSE.txt", "../private/absent"),
    "a device": ("LICENSE.rst", "/dev/zero"),
}


def link(folder: Path, name: str, target: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target.format(root=folder.parent))


def spread(folder: Path) -> None:
    """What the links inside the folder lead to."""
    (folder / ".env").write_bytes(SECRET)
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "model.pt2").write_bytes(SECRET)
    (folder / "inner").symlink_to("../private/token")


@pytest.mark.parametrize("case", LINKS)
def test_no_link_is_followed(case: str, folder: Path, secrets: Path) -> None:
    spread(folder)
    link(folder, *LINKS[case])
    files = published_files(folder)
    assert not any(SECRET in path.read_bytes() for path in files.values())
    assert not files.keys() & {LINKS[case][0], f"{LINKS[case][0]}/model.onnx", f"{LINKS[case][0]}/model.pt2"}
    assert f"{LINKS[case][0]} (a link)" in left_out(folder)


def test_a_push_of_all_of_them_publishes_none_and_says_so(
    hub: FakeHub, folder: Path, secrets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spread(folder)
    for name, target in LINKS.values():
        link(folder, name, target)
    push_folder(folder, "me/x")
    assert all(SECRET not in content for content in hub.files("me/x").values())
    assert hub.files("me/x").keys() <= PUBLISHED
    said = [line for line in caplog.messages if "Not published" in line]
    assert len(said) == 1
    assert "LICENSE (a link)" in said[0]
    assert "more" in said[0]


def test_nor_is_one_when_a_loaded_model_is_saved_elsewhere(folder: Path, secrets: Path, tmp_path: Path) -> None:
    spread(folder)
    for name, target in LINKS.values():
        if "processor" not in name:  # loading one that is damaged is refused before
            link(folder, name, target)
    model = load(folder)
    model.companions = restored_companions(model)
    model.save_pretrained(tmp_path / "copy")
    assert all(SECRET not in content for content in contents(tmp_path / "copy").values())


def test_nor_by_a_card_that_is_renewed(folder: Path, secrets: Path) -> None:
    link(folder, "README.md", "../private/README.md")
    write_card(folder)
    assert SECRET not in (folder / "README.md").read_bytes()
    assert (secrets / "README.md").read_bytes() == SECRET


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_weights_that_lie_elsewhere_are_asked_for(name: str, hub: FakeHub, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(PublishError, match=rf"{name} is a link out of the folder.*Put the files themselves there"):
        push_folder(folder, "me/x")
    assert "me/x" not in hub.repositories


PRIVATE = [
    "compression_secrets.env",
    "compression_",
    "compression_x.md.env",
    "onnx/.env",
    "onnx/core.1234",
    "onnx/core",
    "onnx/notes.txt",
    "onnx/model.onnx.bak",
    "openvino/.model.bin",
    "executorch/id_rsa",
    ".LICENSE",
    "LICENSE.env",
    "LICENSE~",
    "NOTICE-.env",
    "LICENSES/.env",
    "LICENSES/x.env",
    "config.json.bak",
    ".vitcompress-files.json",
    "my processor_config.json",
    "model_ema.safetensors",
    "core",
    "core.4711",
    "LICENSE\n.txt",
]


@pytest.mark.parametrize("name", PRIVATE)
def test_other_names_stay(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(SECRET)
    assert published_files(folder).keys() == PUBLISHED - {"README.md"}


PUBLIC = [
    "LICENSE",
    "LICENSE.txt",
    "LICENSE-MIT",
    "LICENSE-APACHE-2.0.txt",
    "LICENCE.md",
    "NOTICE",
    "COPYING",
    "LICENSES/MIT.txt",
    "LICENSES/Apache-2.0.txt",
    "LICENSES/GPL-3.0-or-later.txt",
    "compression_notes.md",
    "tokenizer.json",
    "vocab.txt",
    "processor_config.json",
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/config.json",
    "onnx/export.json",
    "onnx/export_report.json",
    "onnx/preprocessor_config.json",
    "openvino/openvino_model.xml",
    "openvino/openvino_model.bin",
    "executorch/model.pte",
    "torch-export/model.pt2",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_known_names_go(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"public")
    assert published_files(folder).keys() == {*PUBLISHED, name} - {"README.md"}
    assert left_out(folder) == []


def sockets(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, sockets], ids=["pipe", "folder", "socket"])
def test_what_is_no_file_stays(make: Callable[[Path], object], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    make(folder / "LICENSE")
    assert "LICENSE" not in published_files(folder)


def test_blobs_of_another_repository_are_outside(folder: Path, tmp_path: Path, secrets: Path) -> None:
    snapshot = tmp_path / "models--me--x" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot.parents[1] / "blobs").symlink_to(secrets)
    (snapshot / "LICENSE").symlink_to("../../blobs/token")
    assert "LICENSE" not in published_files(snapshot)


def test_names_in_the_line_cannot_drive_the_terminal(
    hub: FakeHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "a\x1b[2J\nb").write_bytes(b"")
    push_folder(folder, "me/x")
    said = caplog.text
    assert r"a\x1b[2J\nb" in said
    assert "\x1b[2J" not in said


def test_a_folder_with_nothing_else_says_nothing(hub: FakeHub, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / ".vitcompress-files.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / ".vitcompress-files.json").write_text("{}")
    (folder / ".git").mkdir()
    push_folder(folder, "me/x")
    assert "Not published" not in caplog.text


def test_terms_in_a_folder_of_their_own_can_be_published_twice(hub: FakeHub, folder: Path) -> None:
    (folder / "LICENSES").mkdir()
    (folder / "LICENSES" / "MIT.txt").write_text("the terms")
    push_folder(folder, "me/x")
    load("me/x").push_to_hub("me/y")
    load("me/y").push_to_hub("me/x")
    assert hub.files("me/x")["LICENSES/MIT.txt"] == hub.files("me/y")["LICENSES/MIT.txt"] == b"the terms"


@pytest.mark.parametrize("name", ["../LICENSE", "LICENSES/../../x.txt", "LICENSES/a/b.txt", "/LICENSE", "config.json"])
def test_names_from_the_hub_that_lead_elsewhere_do_not_go_along(name: str) -> None:
    assert not goes_along(name)
