"""A small fake of the Hugging Face Hub, to which the real client pushes and from which it loads.

    from support.fake_hub import FakeHub, running_hub  # noqa: F401  (the fixture "hub")

    def test_publishing(hub: FakeHub) -> None:
        hub.fail("POST", "/preupload/", 503)
        model.push_to_hub("me/x")
        assert "model.safetensors" in hub.files("me/x")
        subprocess.run(command, env={**os.environ, **hub.environment()}, check=True)

It speaks of models only, and uploads go without Xet, for which a client asks no server.
"""

from .client import running_hub
from .hub import FakeHub, Token
from .protocol import Request
from .repositories import Blob, Commit, Repository

__all__ = ["Blob", "Commit", "FakeHub", "Repository", "Request", "Token", "running_hub"]
