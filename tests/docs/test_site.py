"""The site builds strictly, says what the code says, and loads nothing from a network."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

import hf_vitcompress
from hf_vitcompress.config import PRESETS
from support.models import REPOSITORY

pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install 'hf-vitcompress[docs]')")
pytest.importorskip("material", reason="mkdocs-material is not installed (pip install 'hf-vitcompress[docs]')")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (pip install 'hf-vitcompress[docs]')")

from mkdocs.commands.build import build
from mkdocs.config import load_config

from mkdocs_hooks import BESIDE, recipe_flags

PACKAGE = Path(hf_vitcompress.__file__).parent
NOT_DOCUMENTED = {"__version__"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning of mkdocs, such as one about a link to nothing, is an error."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")  # the theme advertises its successor
        config = load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(folder))
        assert config.strict
        build(config)
    return folder


def pages(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        yield path.relative_to(site).as_posix(), path.read_text(encoding="utf-8")


def test_every_page_of_docs_is_a_page_of_the_site(site: Path) -> None:
    sources = {path.relative_to(REPOSITORY / "docs").with_suffix(".html") for path in REPOSITORY.glob("docs/**/*.md")}
    assert {path for path in sources if not (site / path).is_file()} == set()


def test_nothing_is_loaded_from_a_network(site: Path) -> None:
    loading = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)\"|<link[^>]*\shref=\"([^\"]+)\"")
    for name, text in pages(site):
        found = [one or other for one, other in loading.findall(text)]
        assert [address for address in found if re.match(r"(?:https?:)?//", address)] == [], name


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = {found for _, text in pages(site) for found in re.findall(r'id="(hf_vitcompress\.[\w.]+)"', text)}
    documented = {name.rpartition(".")[2] for name in ids}
    assert set(hf_vitcompress.__all__) - documented == NOT_DOCUMENTED


def test_the_page_of_the_command_line_has_every_command_and_every_setting(site: Path) -> None:
    text = unescape((site / "command-line.html").read_text(encoding="utf-8"))
    for command in ("compress", "inspect", "plan", "evaluate", "quantize", "export", "convert", "push"):
        assert f">vitcompress {command}" in text
    flags = recipe_flags()
    assert {"--keep-ratio", "--seed"} <= set(flags)
    for flag in flags:
        assert f"<code>{flag}</code>" in text


def test_the_page_of_methods_has_every_preset() -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \| `\w+` \|", text, re.MULTILINE)) == set(PRESETS)


def test_the_page_of_the_architecture_has_every_folder() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders
    assert {folder for folder in folders if f"`{folder}/`" not in text} == set()


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_links_of_the_readme_lead_to_files_and_headings() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (REPOSITORY / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            path, _, heading = link.partition("#")
            target = REPOSITORY / (path or page)
            assert target.is_file(), link
            if heading:
                assert heading in headings(target), link


def headings(page: Path) -> set[str]:
    """Anchors, as GitHub and mkdocs make them of headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_what_lies_beside_docs_is_there() -> None:
    """A pattern that matches nothing would take nothing into the site."""
    for pattern in BESIDE:
        assert list(REPOSITORY.glob(pattern)), pattern
