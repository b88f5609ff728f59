"""Pushes that go wrong: the folder stays as it is, the push can be repeated, and nothing arrives twice."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from hf_vitcompress.errors import PublishError
from hf_vitcompress.publish import retries
from hf_vitcompress.publish.push import push_folder
from support.fake_hub import FakeHub, running_hub, writing  # noqa: F401  (the fixture "hub")
from support.published import PUBLISHED, Made, block_count, card_of, contents
from support.pushing import edit_remote, load, pushes, with_words

LARGE_FILES = {"model.safetensors", "compression_report.png"}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that our own code would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr(retries, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture(autouse=True)
def untouched(folder: Path) -> Iterator[None]:
    """Whatever happens, the folder is as it was, to the byte."""
    before = contents(folder)
    yield
    assert contents(folder) == before


def uploads(hub: FakeHub, status: int = 200) -> list[str]:
    return [request.path for request in hub.seen("PUT", "/stored/") if request.status == status]


def assert_published_once(hub: FakeHub, repo: str = "me/x") -> None:
    assert hub.files(repo).keys() == PUBLISHED
    assert len(pushes(hub, repo)) == 1
    assert block_count(card_of(hub.files(repo)).text) == 1


REQUESTS = [
    ("POST", "/repos/create"),
    ("GET", "/api/models/me/x"),
    ("POST", "/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/stored/"),
    ("POST", "/verify"),
    ("POST", "/commit/"),
]
NEEDED = [(method, pattern) for method, pattern in REQUESTS if pattern != "/verify"]
"""What has arrived is there, even where nobody could verify it."""


# ---- what passes


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize(("method", "pattern"), REQUESTS, ids=[pattern for _, pattern in REQUESTS])
def test_a_hub_that_is_busy_for_a_moment(hub: FakeHub, folder: Path, method: str, pattern: str, status: int) -> None:
    hub.fail(method, pattern, status, times=2)
    push_folder(folder, "me/x")
    assert_published_once(hub)


@pytest.mark.parametrize(("method", "pattern"), REQUESTS, ids=[pattern for _, pattern in REQUESTS])
def test_a_connection_that_breaks(hub: FakeHub, folder: Path, method: str, pattern: str) -> None:
    hub.cut(method, pattern, times=2)
    push_folder(folder, "me/x")
    assert_published_once(hub)


@pytest.mark.parametrize(("method", "pattern"), REQUESTS, ids=[pattern for _, pattern in REQUESTS])
def test_an_answer_that_is_lost(hub: FakeHub, folder: Path, method: str, pattern: str) -> None:
    hub.cut(method, pattern, applied=True)
    push_folder(folder, "me/x")
    assert_published_once(hub)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_commit_that_was_made_behind_an_error(hub: FakeHub, folder: Path, status: int) -> None:
    hub.fail("POST", "/commit/", status, applied=True)
    push_folder(folder, "me/x")
    assert_published_once(hub)


def test_a_commit_that_deletes_and_whose_answer_is_lost(hub: FakeHub, folder: Path) -> None:
    push_folder(folder, "me/x", max_shard_size="20KB")
    hub.cut("POST", "/commit/", applied=True)
    push_folder(folder, "me/x")
    assert hub.files("me/x").keys() == PUBLISHED
    assert len(pushes(hub)) == 2


@pytest.mark.parametrize("after_bytes", [1, 20_000])
def test_a_connection_that_breaks_in_the_middle_of_the_weights(hub: FakeHub, folder: Path, after_bytes: int) -> None:
    hub.cut("PUT", "/stored/", after_bytes=after_bytes, times=3)
    push_folder(folder, "me/x")
    assert_published_once(hub)
    assert hub.files("me/x")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_weights_in_parts(hub: FakeHub, folder: Path) -> None:
    hub.part_size = 20_000
    hub.cut("PUT", r"/stored/.*/2$", after_bytes=5000)
    hub.fail("POST", "/complete_multipart/", 500)
    push_folder(folder, "me/x")
    assert_published_once(hub)


@pytest.mark.parametrize(("method", "times"), [("HEAD", 8), ("GET", 2)])
def test_the_card_of_the_hub_is_waited_for(hub: FakeHub, folder: Path, method: str, times: int) -> None:
    """Without it a person's words would be lost. (The client itself asks six times for the head, and once for more.)"""
    push_folder(folder, "me/x")
    edit_remote(hub, *with_words("above", "below"))
    hub.fail(method, "/resolve/.*README", 503, times=times)
    hub.cut(method, "/resolve/.*README", times=2)
    push_folder(folder, "me/x", tags=["more"])
    card = card_of(hub.files("me/x"))
    assert card.text.startswith("above")
    assert "more" in card.metadata["tags"]


def test_it_waits_as_long_as_the_hub_says(hub: FakeHub, folder: Path, waits: list[float]) -> None:
    hub.fail("POST", "/commit/", 429, {"Retry-After": "7"})
    hub.fail("POST", "/commit/", 429, {"RateLimit": '"api";r=0;t=55'})
    hub.fail("POST", "/commit/", 503)
    push_folder(folder, "me/x")
    assert waits == [7.0, 55.0, 4.0]
    assert_published_once(hub)


def test_a_branch_is_made_once(hub: FakeHub, folder: Path) -> None:
    hub.cut("POST", "/branch/", applied=True)
    push_folder(folder, "me/x", revision="small")
    assert hub.files("me/x", "small").keys() == PUBLISHED


# ---- what does not


@pytest.mark.parametrize(("method", "pattern"), NEEDED, ids=[pattern for _, pattern in NEEDED])
@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_hub_that_is_down_is_told_and_the_push_repeated(
    hub: FakeHub, folder: Path, method: str, pattern: str, fault: str
) -> None:
    if fault == "503":
        hub.fail(method, pattern, 503, times=999)
    else:
        hub.cut(method, pattern, times=999)
    with pytest.raises(PublishError, match=r"Nothing on this disk was touched") as error:
        push_folder(folder, "me/x")
    said = "could not be reached" if fault == "cut" or pattern == "/validate-yaml" else "answered 503"
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    sent = len(uploads(hub))
    hub.faults.clear()
    push_folder(folder, "me/x")
    assert_published_once(hub)
    assert len(uploads(hub)) == len(LARGE_FILES), "what had arrived was not sent again"
    assert sent <= len(LARGE_FILES)


def test_an_interrupted_push_sends_only_what_is_missing(hub: FakeHub, folder: Path) -> None:
    push_folder(folder, "me/y", max_shard_size="20KB")
    hub.requests.clear()
    stuck = hub.repositories["me/y"].find("main").files["model-00002-of-00003.safetensors"].sha256
    hub.cut("PUT", f"/stored/.*{stuck}", after_bytes=1000, times=999)
    with pytest.raises(PublishError, match="could not be reached"):
        push_folder(folder, "me/x", max_shard_size="20KB")
    arrived = set(uploads(hub))
    assert pushes(hub) == []
    hub.faults.clear()
    push_folder(folder, "me/x", max_shard_size="20KB")
    assert len(uploads(hub)) == len(set(uploads(hub))) == 4, "three shards and the figure, each once"
    assert 0 < len(arrived) < 4


def test_ctrl_c_in_the_middle_of_a_push(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for module in (huggingface_hub._commit_api, huggingface_hub.hf_api):  # either calls it, by version
            patch.setattr(module, "_send_commit", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt):
            push_folder(folder, "me/x")
    assert len(uploads(hub)) == len(LARGE_FILES)
    push_folder(folder, "me/x")
    assert_published_once(hub)
    assert len(uploads(hub)) == len(LARGE_FILES)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not know the token"),
        (403, "may not write to 'me/x'"),
        (404, "no such 'me/x'|404"),
        (409, "being changed by somebody else"),
        (412, "being changed by somebody else"),
        (413, "answered 413"),
    ],
)
def test_a_commit_that_is_refused_is_explained(hub: FakeHub, folder: Path, status: int, words: str) -> None:
    hub.fail("POST", "/commit/", status, times=99)
    with pytest.raises(PublishError, match=words) as error:
        push_folder(folder, "me/x")
    assert "\n" not in str(error.value)
    assert pushes(hub) == []
    hub.faults.clear()
    push_folder(folder, "me/x")
    assert_published_once(hub)


def test_tokens_that_may_not(hub: FakeHub, folder: Path) -> None:
    hub.add_repo("you/x")
    read_only = hub.token(write=False)
    for token, repo, words in [
        ("hf_unknown", "me/x", "does not know the token"),
        (read_only, "me/x", "may not write to 'me/x'.*read-only"),
        (hub.token(), "you/x", "may not write to 'you/x'"),
        (hub.token(), "nobody/x", "may not write to 'nobody/x'"),
    ]:
        with pytest.raises(PublishError, match=words) as error:
            push_folder(folder, repo, token=token)
        assert token not in str(error.value)
        assert token not in repr(error.value.__cause__)
    assert hub.repositories.keys() == {"you/x"}


@pytest.mark.parametrize("token", [False, "", "hf_a b", "hf_a\n", "hf_ä", "\x00"])
def test_no_token_is_told_before_anything_is_asked(hub: FakeHub, made: Made, folder: Path, token: Any) -> None:
    for push in (lambda: push_folder(folder, "me/x", token=token), lambda: made.model.push_to_hub("me/x", token=token)):
        with pytest.raises(PublishError, match="token") as error:
            push()
        assert "hf_a" not in str(error.value)
    assert hub.requests == []


def test_a_machine_without_a_token(hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PublishError, match="hf auth login"):
        push_folder(folder, "me/x")
    push_folder(folder, "me/x", token=hub.token())
    hub.home.mkdir(exist_ok=True)
    (hub.home / "token").write_text(hub.token())
    push_folder(folder, "me/y")
    push_folder(folder, "me/z", token=True)
    assert hub.repositories.keys() == {"me/x", "me/y", "me/z"}


@pytest.mark.parametrize("name", ["", "a/b/c", "me/x y", "me/../x", "https://huggingface.co/me/x", "/models/x", "me/"])
def test_names_that_no_repository_has(hub: FakeHub, folder: Path, name: str) -> None:
    with pytest.raises(PublishError, match="is no name of a Hub repository") as error:
        push_folder(folder, name)
    assert "\n" not in str(error.value)
    assert hub.requests == []


def test_a_machine_that_is_offline_is_told_at_once(
    hub: FakeHub, folder: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(PublishError, match="could not be reached"):
        push_folder(folder, "me/x")
    assert waits == []


# ---- other people


@pytest.fixture
def before_commits(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], object]], None]:
    """Let `act(number)` happen on the Hub just before it carries out the commit with that number."""

    def arrange(act: Callable[[int], object]) -> None:
        numbers, branch_head = itertools.count(), writing.branch_head

        def delayed(*arguments: Any) -> Any:
            act(next(numbers))
            return branch_head(*arguments)

        monkeypatch.setattr(writing, "branch_head", delayed)

    return arrange


def test_an_edit_during_the_push_survives(hub: FakeHub, folder: Path, before_commits: Any) -> None:
    push_folder(folder, "me/x")

    def edit(number: int) -> None:
        if number < 2:
            edit_remote(hub, *with_words(f"edit {number}", ""))

    before_commits(edit)
    push_folder(folder, "me/x", tags=["more"])
    card = card_of(hub.files("me/x"))
    assert re.search(r"edit 0\s+edit 1\s+<!--", card.text)
    assert "more" in card.metadata["tags"]
    assert block_count(card.text) == 1
    assert [request.status for request in hub.seen("POST", "/commit/")] == [200, 412, 412, 200]
    assert len(uploads(hub)) == len(LARGE_FILES)


def test_a_repository_that_never_rests_is_told(hub: FakeHub, folder: Path, before_commits: Any) -> None:
    push_folder(folder, "me/x")
    before_commits(lambda number: hub.put("me/x", "notes.md", str(number).encode()))
    with pytest.raises(PublishError, match="being changed by somebody else"):
        push_folder(folder, "me/x", tags=["more"])


def test_a_card_that_somebody_makes_during_the_first_push_survives(
    hub: FakeHub, folder: Path, before_commits: Any
) -> None:
    def write(number: int) -> None:
        if number == 0:
            hub.put("me/x", "README.md", b"---\nlicense: gpl-3.0\n---\n# Theirs\n")

    before_commits(write)
    push_folder(folder, "me/x")
    card = card_of(hub.files("me/x"))
    assert card.text.startswith("# Theirs")
    assert card.metadata["license"] == "gpl-3.0"


# ---- pull requests: the request that opens one is never sent twice, unless it was refused


@pytest.mark.parametrize("fault", ["lost", 500, 502, 503, 504])
def test_an_uncertain_pull_request_is_not_opened_twice(hub: FakeHub, folder: Path, fault: Any) -> None:
    hub.add_repo("you/x")
    if fault == "lost":
        hub.cut("POST", "/commit/", applied=True)
    else:
        hub.fail("POST", "/commit/", fault, applied=True)
    with pytest.raises(PublishError, match=r"may have opened it: look there before you repeat"):
        push_folder(folder, "you/x", create_pr=True)
    assert [ref for ref in hub.repositories["you/x"].refs if "pr" in ref] == ["refs/pr/1"]
    assert len(hub.seen("POST", "/commit/")) == 1


def test_a_pull_request_that_was_refused_is_opened_later(hub: FakeHub, folder: Path, waits: list[float]) -> None:
    hub.add_repo("you/x")
    hub.fail("POST", "/commit/", 429, {"Retry-After": "3"}, times=2)
    push_folder(folder, "you/x", create_pr=True)
    assert waits == [3.0, 3.0]
    assert [ref for ref in hub.repositories["you/x"].refs if "pr" in ref] == ["refs/pr/1"]


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize(("method", "pattern"), REQUESTS[3:-1], ids=[p for _, p in REQUESTS[3:-1]])
def test_before_it_is_opened_everything_can_be_repeated(
    hub: FakeHub, folder: Path, method: str, pattern: str, status: int
) -> None:
    hub.add_repo("you/x")
    hub.fail(method, pattern, status)
    hub.cut(method, pattern)
    push_folder(folder, "you/x", create_pr=True)
    assert hub.files("you/x", "refs/pr/1").keys() == PUBLISHED
    assert len(uploads(hub)) == len(set(uploads(hub))) == len(LARGE_FILES)


def test_a_branch_that_is_not_there_gets_no_pull_request(hub: FakeHub, folder: Path) -> None:
    hub.add_repo("you/x")
    with pytest.raises(PublishError, match="no such revision"):
        push_folder(folder, "you/x", create_pr=True, revision="none")


# ---- folders that are not whole


def damaged(folder: Path, how: str) -> str:
    """Damage a folder; returns what the error must say."""
    weights = folder / "model.safetensors"
    match how:
        case "no config":
            (folder / "config.json").unlink()
        case "no weights":
            weights.unlink()
        case "other weights":
            weights.rename(folder / "model_ema.safetensors")
        case "no folder":
            return "is no checkpoint"
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "empty":
            weights.write_bytes(b"")
        case "bad config":
            (folder / "config.json").write_text("{")
        case "bad index":
            (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
        case "shard without index":
            weights.rename(folder / "model-00001-of-00002.safetensors")
    return "is damaged" if how in ("cut", "empty", "bad config", "bad index") else "is no checkpoint"


@pytest.mark.parametrize(
    "how",
    [
        *("no config", "no weights", "other weights", "no folder", "shard without index"),
        *("cut", "empty", "bad config", "bad index"),
    ],
)
def test_what_is_no_whole_checkpoint_is_told_before_anything_is_asked(
    hub: FakeHub, made: Made, tmp_path: Path, how: str
) -> None:
    root = tmp_path / "copy"
    if how != "no folder":
        made.model.save_pretrained(root)
    words = damaged(root, how)
    with pytest.raises(PublishError, match=f"{re.escape(str(root))}.*{words}") as error:
        push_folder(root, "me/x")
    assert "\n" not in str(error.value)
    assert hub.requests == []


def test_a_shard_that_is_missing_is_named(hub: FakeHub, made: Made, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    made.model.save_pretrained(root, max_shard_size="20KB")
    (root / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(PublishError, match=r"lacks model-00002-of-00003\.safetensors"):
        push_folder(root, "me/x")
    assert hub.requests == []


# ---- models that came from the Hub


def test_where_the_source_cannot_be_read_nothing_is_published(hub: FakeHub, folder: Path) -> None:
    """Or the card and the report would be missing from the copy."""
    hub.add_repo("me/x", contents(folder))
    model = load("me/x")
    hub.fail("GET", "/api/models/me/x", 503, times=99)
    with pytest.raises(PublishError, match="answered 503"):
        model.push_to_hub("me/y")
    assert "me/y" not in hub.repositories
    hub.faults.clear()
    model.push_to_hub("me/y")
    assert hub.files("me/y").keys() == PUBLISHED


def test_a_model_whose_source_is_gone_is_published_by_itself(
    hub: FakeHub, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add_repo("me/x", contents(folder))
    model = load("me/x")
    del hub.repositories["me/x"]
    model.push_to_hub("me/y")
    assert {"config.json", "model.safetensors"} <= hub.files("me/y").keys()
    assert "no 'me/x' any more" in caplog.text
