"""The page of promises names tests that exist."""

import re

from support.models import REPOSITORY

PAGE = (REPOSITORY / "docs" / "promises.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and "held by" not in line]


def test_every_promise_names_tests_that_exist() -> None:
    missing = []
    for row in ROWS:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row.rstrip(" |").rpartition("|")[2])
        assert named, row
        for file, test in named:
            path = REPOSITORY / file
            if not path.is_file() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
                missing.append(f"{file}::{test}" if test else file)
    assert missing == []


def test_the_page_has_promises() -> None:
    assert len(ROWS) > 10
    assert {line for line in PAGE.splitlines() if line.startswith("## ")} >= {
        "## Before the work",
        "## During the work",
    }
