"""What a producer made from a URL knows of its backend."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dispytch import (
    Backend,
    BackendConfig,
    BackendLoadError,
    Capabilities,
    ConfigMismatchError,
    Connection,
    EmitContext,
    EventBase,
    EventEmitter,
    Outgoing,
    Producer,
    Receipt,
    TopicError,
    plugins,
)


class AcmeConfig(BackendConfig):
    foo: str = ""


class OtherConfig(BaseModel):
    bar: str = ""


class AcmeProducer(Producer):
    """As a plugin's author may write it: all else stands in the Backend."""

    @classmethod
    def from_connection(cls, _connection: Any, /) -> "AcmeProducer":
        return cls()

    async def send_message(self, out: Outgoing, /) -> dict[str, Any]:
        return dict(out.headers)


class Sent(EventBase):
    __topic__ = "sent/{to}"
    __event_type__ = "sent"
    to: str = "a.b"


@pytest.fixture
def _acme() -> Iterator[None]:
    plugins.register(
        Backend(
            "acme",
            AcmeConfig,
            AcmeProducer,
            connection=Connection,
            capabilities=Capabilities(headers=True),
            topic_delimiter="/",
        )
    )
    yield
    plugins.unregister("acme")


@pytest.mark.usefixtures("_acme")
async def test_producer_from_a_url_takes_over_what_its_backend_says() -> None:
    """Name, config schema, delimiter and headers need not be said twice."""

    async def tagged(ctx: EmitContext, call_next: Any) -> Receipt:
        ctx.headers["tag"] = "x"
        receipt: Receipt = await call_next(ctx)
        return receipt

    async with EventEmitter.from_url("acme://host", middleware=[tagged]) as emitter:
        receipt = await emitter.emit(Sent())
        assert (receipt.backend, receipt.topic) == ("acme", "sent/a.b")
        assert receipt.details == {"tag": "x"}
        with pytest.raises(TopicError):
            await emitter.emit(Sent(to="a/b"))
        with pytest.raises(ConfigMismatchError):
            await emitter.emit(Sent(__backend_config__=OtherConfig()))


def test_client_that_cannot_be_imported_is_reported_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin whose client is missing says who offers it, in which version, and why."""
    (tmp_path / "halfway_plugin.py").write_text(
        "from dispytch import Backend, hookimpl\n"
        "@hookimpl\n"
        "def dispytch_backend():\n"
        "    return Backend('halfway', None, 'halfway_client_missing:Producer')\n"
    )
    info = tmp_path / "acme_halfway-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-halfway\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[dispytch.backends]\nhalfway = halfway_plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.refresh()
    try:
        with pytest.raises(BackendLoadError, match=r"acme-halfway 1\.2") as caught:
            plugins.get_backend("halfway").load_producer()
        assert caught.value.distribution == "acme-halfway"
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
        errors = {info.name: info.error for info in plugins.backends(check=True)}
        assert isinstance(errors["halfway"], BackendLoadError)
        assert errors["memory"] is None
    finally:
        monkeypatch.undo()
        sys.modules.pop("halfway_plugin", None)
        plugins.refresh()
