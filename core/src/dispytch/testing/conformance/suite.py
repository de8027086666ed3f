"""BackendConformance: what an author subclasses, and which tests apply to the backend."""

import inspect
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from dispytch import plugins
from dispytch.backend import Backend, Capabilities
from dispytch.errors import PluginError
from dispytch.testing.conformance.capabilities import CapabilityTests
from dispytch.testing.conformance.failing import FailingTests
from dispytch.testing.conformance.hooks import Broker, Network
from dispytch.testing.conformance.kit import Kit
from dispytch.testing.conformance.plugin import PluginTests
from dispytch.testing.conformance.promise import promise_of
from dispytch.testing.conformance.receiving import ReceivingTests
from dispytch.testing.conformance.sending import SendingTests

__all__ = ["BackendConformance"]


class BackendConformance(PluginTests, SendingTests, ReceivingTests, CapabilityTests, FailingTests):
    """The tests that a backend must pass.

    Subclass it, name the backend, give `url`::

        class TestMyBackend(BackendConformance):
            backend = "mybackend"

            @pytest.fixture
            def url(self, my_broker):
                return f"mybackend://127.0.0.1:{my_broker.port}"

    `url` leads to a broker on which the tests may make topics and groups, with names that nobody
    else has. The `Capabilities` of the backend and the hooks that are given decide which tests
    apply; the others are not collected, and `not_applicable` tells why. A capability that is
    declared and does not work fails, and so does one that works and is not declared.

    A test can be overridden only by one that is marked `xfail` with a reason.

    Attributes:
        backend: its name.
        lives_in: where the broker is: `"server"`, a process of its own; `"file"`, files that
            several processes use; `"process"`, the process of the tests and no other.
        oversize: bytes of a payload that must be refused; None: there is no limit.
        unroutable: whether emitting to a topic that nobody made or subscribed to is an error.
        stop_within: seconds that `stop` may take, whatever the broker does.
        recovery: seconds from the end of a fault until all is handled.
        quiet: seconds after which nothing comes any more that has not come.
        light: modules of what the plugin requires that are no client: its schemas may import them.
        uncommitted: how many finished events, beside those under way, may come again when a
            consumer dies or its connection is lost.
        not_applicable: by the name of a test, what it needs and is not there.
    """

    pytestmark = pytest.mark.asyncio(loop_scope="function")

    backend: ClassVar[str]
    lives_in: ClassVar[Literal["server", "file", "process"]] = "server"
    oversize: ClassVar[int | None] = None
    unroutable: ClassVar[bool] = False
    stop_within: ClassVar[float] = 10.0
    recovery: ClassVar[float] = 60.0
    quiet: ClassVar[float] = 1.0
    light: ClassVar[tuple[str, ...]] = ()
    uncommitted: ClassVar[int] = 0
    not_applicable: ClassVar[dict[str, tuple[str, ...]]] = {}

    # Hooks: what the kit can't know of a backend

    @pytest.fixture
    def broker(self) -> Broker:
        """The broker's process, to be killed and frozen; without it, no fault can be shown."""
        raise NotImplementedError("Capabilities(durable=True) is shown with the hook `broker`")

    @pytest.fixture
    def network(self) -> Network:
        """A way to the broker that can be cut, see `Network`."""
        raise NotImplementedError

    @pytest.fixture
    def refused_url(self) -> str:
        """The URL of a user who may log in, or not even that, and do nothing."""
        raise NotImplementedError

    async def make_topic(self, url: str, topic: str) -> None:
        """Make a topic, where the broker does not do so by itself."""

    def ttl(self, seconds: float) -> Any:
        """An event config that lets an event expire after so many seconds."""
        raise NotImplementedError("Capabilities(ttl=True) is shown with the hook `ttl`")

    def delay(self, seconds: float) -> Any:
        """An event config that holds an event back for so many seconds."""
        raise NotImplementedError

    def priority(self, level: int) -> Any:
        """An event config of this priority: 0 is low, 1 is high."""
        raise NotImplementedError("Capabilities(priority=True) is shown with the hook `priority`")

    # The kit

    @pytest.fixture
    def kit(self, url: str, tmp_path: Path) -> Kit:
        """What the tests work with. Each closes it in its own event loop."""
        return Kit(self, url, tmp_path)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the tests that apply, and let none be lost silently."""
        super().__init_subclass__(**kwargs)
        _refuse_silent_overrides(cls)
        if not hasattr(cls, "backend"):
            return
        there, left_out, cls.not_applicable = _there(cls), cls.not_applicable, {}
        for name, test in _tests().items():
            if name in left_out and inspect.getattr_static(cls, name) is None:
                # A class that this one derives from left it out; here it may apply.
                setattr(cls, name, test)
            promise = promise_of(test)
            missing = () if promise is None else tuple(sorted(promise.needs - there))
            if missing and inspect.getattr_static(cls, name) is test:
                cls.not_applicable[name] = missing
                setattr(cls, name, None)

    @staticmethod
    def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
        """Refuse a mark on the class or its module that expects all tests to fail."""
        for node, _ in metafunc.definition.iter_markers_with_node("xfail"):
            if node is not metafunc.definition:
                pytest.fail(_expects_all(node.name), pytrace=False)


def _there(cls: type[BackendConformance]) -> frozenset[str]:
    """What tests may need: capabilities, hooks that are given, where the broker lives."""
    backend = _backend(cls.backend)
    if backend is None:  # each test tells so
        return frozenset().union(*(p.needs for t in _tests().values() if (p := promise_of(t))))
    declared = {name for name in Capabilities.__slots__ if getattr(backend.capabilities, name)}
    hooks = {
        name
        for name in ("broker", "network", "refused_url", "ttl", "delay", "priority")
        if inspect.getattr_static(cls, name) is not inspect.getattr_static(BackendConformance, name)
    }
    given = {
        "oversize": cls.oversize is not None,
        "unroutable": cls.unroutable,
        "config": backend.event_config is not None,
        "consumer": backend.consumer is not None,
        "distribution": any(
            info.name == cls.backend and info.distribution for info in plugins.backends()
        ),
        "other processes": cls.lives_in != "process",
        "competing members": backend.capabilities.ordering != "total",
        # Without both, `nack` has only the consumer's own memory to take from: that is no ack.
        "something kept": backend.capabilities.manual_ack or backend.capabilities.groups,
        # What is declared must be shown, with the broker's process: a file has none.
        "restart": cls.lives_in != "file" and ("broker" in hooks or "durable" in declared),
    }
    return frozenset(
        declared | hooks | {name for name, is_given in given.items() if is_given} | {cls.lives_in}
    )


def _backend(name: str) -> Backend | None:
    try:
        return plugins.get_backend(name)
    except PluginError:
        return None


def _tests() -> dict[str, Any]:
    """The tests of the kit, by name."""
    return {
        name: test
        for kind in reversed(BackendConformance.__mro__)
        for name, test in vars(kind).items()
        if name.startswith("test_")
    }


def _expects_all(what: str) -> str:
    return (
        f"{what} expects all its tests to fail: override those that do, one by one, "
        "each with an xfail and its reason"
    )


def _refuse_silent_overrides(cls: type[BackendConformance]) -> None:
    marks = cls.__dict__.get("pytestmark", [])
    if any(mark.name == "xfail" for mark in (marks if isinstance(marks, list) else [marks])):
        raise TypeError(_expects_all(cls.__name__))
    for name, test in _tests().items():
        found = inspect.getattr_static(cls, name, None)
        if found is test or (found is None and name in cls.not_applicable):
            continue
        marks = [mark for mark in getattr(found, "pytestmark", ()) if mark.name == "xfail"]
        if not any(mark.kwargs.get("reason") for mark in marks):
            raise TypeError(
                f"{cls.__name__} overrides {name}, a test of the conformance kit, silently. "
                "promised: a backend that passes the kit passes all of it. Take the override away, "
                'or mark it @pytest.mark.xfail(reason="why this backend can not keep it")'
            )
