"""Faults of the fake Hub, and what the plain client makes of them by itself."""

from json import JSONDecodeError
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")
from support.pushing import FILES, LARGE, LARGE_PATH, client_with_a_repository, push, status_of  # noqa: F401


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize(
    ("method", "pattern"),
    [("POST", "/preupload/"), ("POST", "/objects/batch$"), ("PUT", "/stored/"), ("POST", "/verify$")],
)
def test_the_client_repeats_an_upload(hub: FakeHub, api: HfApi, method: str, pattern: str, status: int) -> None:
    hub.fail(method, pattern, status, times=2)
    push(api, FILES)
    assert hub.files("me/x") == FILES
    assert [request.status for request in hub.seen(method, pattern)] == [status, status, 200]
    assert hub.waits == [1, 2]


def test_the_client_does_not_repeat_a_commit(hub: FakeHub, api: HfApi) -> None:
    hub.fail("POST", "/commit/main", 503)
    with pytest.raises(HfHubHTTPError) as error:
        push(api, FILES)
    assert status_of(error) == 503
    assert hub.files("me/x") == {}
    assert len(hub.seen("POST", "/commit/")) == 1


@pytest.mark.parametrize("status", [401, 403, 409, 412, 429])
def test_errors_of_a_commit(hub: FakeHub, api: HfApi, status: int) -> None:
    hub.fail("POST", "/commit/", status, message="Not today")
    with pytest.raises(HfHubHTTPError, match="Not today") as error:
        push(api, FILES)
    assert status_of(error) == status
    push(api, FILES)
    assert hub.files("me/x") == FILES


def test_a_commit_of_which_the_client_does_not_hear(hub: FakeHub, api: HfApi) -> None:
    hub.fail("POST", "/commit/", 504, applied=True)
    with pytest.raises(HfHubHTTPError):
        push(api, FILES)
    hub.cut("POST", "/commit/", applied=True)
    with pytest.raises(Exception, match="disconnected"):
        push(api, {"notes.md": b"second"})
    assert hub.files("me/x") == {**FILES, "notes.md": b"second"}
    assert [request.status for request in hub.seen("POST", "/commit/")] == [504, 0]


def test_the_client_waits_as_long_as_it_is_told(hub: FakeHub, api: HfApi) -> None:
    hub.fail("POST", "/preupload/", 429, {"Retry-After": "7"})
    hub.fail("POST", "/preupload/", 429, {"RateLimit": '"api";r=0;t=30'})
    push(api, FILES)
    assert hub.waits == [8, 31]


def test_the_client_gives_up(hub: FakeHub, api: HfApi) -> None:
    hub.fail("PUT", "/stored/", 500, times=99)
    with pytest.raises(RuntimeError, match=LARGE_PATH):
        push(api, FILES)
    assert len(hub.seen("PUT", "/stored/")) == 6
    assert hub.files("me/x") == {}


@pytest.mark.parametrize("after_bytes", [0, 50_000])
def test_an_upload_that_is_cut(hub: FakeHub, api: HfApi, after_bytes: int) -> None:
    hub.cut("PUT", "/stored/", after_bytes, times=2)
    push(api, FILES)
    assert hub.files("me/x") == FILES
    assert [request.status for request in hub.seen("PUT", "/stored/")] == [0, 0, 200]


@pytest.mark.parametrize(("chunk", "then"), [(10_000_000, 200), (20_000, 206)])
def test_a_download_that_is_cut(
    hub: FakeHub, api: HfApi, monkeypatch: pytest.MonkeyPatch, chunk: int, then: int
) -> None:
    """The client keeps whole chunks of what it got, and asks for what is after them."""
    push(api, FILES)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", chunk)
    hub.cut("GET", r"model\.safetensors", after_bytes=50_000)
    assert Path(hf_hub_download("me/x", LARGE_PATH)).read_bytes() == LARGE
    assert [request.status for request in hub.seen("GET", r"model\.safetensors")] == [0, then]


def test_a_hub_that_is_down_for_a_while(hub: FakeHub, api: HfApi) -> None:
    push(api, FILES)
    hub.fail("HEAD", "/resolve/", 503, times=2)
    path = Path(hf_hub_download("me/x", "notes.md"))
    hub.fail("HEAD", "/resolve/", 503)
    assert Path(hf_hub_download("me/x", "notes.md")) == path
    assert [request.status for request in hub.seen("HEAD", "/resolve/")] == [503, 503, 200, 503]


@pytest.mark.parametrize(("status", "error"), [(500, HfHubHTTPError), (503, JSONDecodeError)])
def test_a_card_that_cannot_be_checked(hub: FakeHub, api: HfApi, status: int, error: type[Exception]) -> None:
    hub.fail("POST", "/validate-yaml", status)
    with pytest.raises(error):
        push(api, {"README.md": b"---\nlicense: mit\n---\n"})
    assert hub.files("me/x") == {}


def test_creating_a_repository_while_another_is_made(hub: FakeHub, api: HfApi) -> None:
    hub.fail("POST", "/repos/create", 409)
    api.create_repo("me/y")
    hub.fail("POST", "/repos/create", 500)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("me/z")
    assert set(hub.repositories) == {"me/x", "me/y"}


def test_requests_that_the_fake_does_not_speak_are_errors_of_the_test(hub: FakeHub, api: HfApi) -> None:
    with pytest.raises(HfHubHTTPError, match="does not speak GET /api/models/me/x/discussions"):
        list(api.get_repo_discussions("me/x"))
    assert len(hub.errors) == 1
    hub.errors.clear()
