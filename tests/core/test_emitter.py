"""EventEmitter: outcomes, deadlines, hooks, middleware and lifecycle."""

import asyncio
import contextlib
import logging
import os
import pickle
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from dispytch import (
    ConfigError,
    ConfigMismatchError,
    ConnectError,
    EmitContext,
    EmitManyError,
    EmitRejected,
    EmitUnknown,
    EncodeError,
    EventBase,
    EventEmitter,
    Outgoing,
    Producer,
    ProducerTimeout,
    Receipt,
    TopicError,
)
from dispytch.memory import MemoryProducer


class Ping(EventBase):
    __topic__ = "pings.{who}"
    __event_type__ = "ping"
    __key__ = "{who}"
    who: str = "me"
    n: int = 0


class Keyless(EventBase):
    __topic__ = "keyless"
    __event_type__ = "keyless"
    n: int = 0
    x: float = 0.0


class MyCustomConfig(BaseModel):
    foo: int = 0


class Scripted(Producer):
    """A producer that does with each event what the test says."""

    backend = "scripted"
    event_config = MyCustomConfig

    def __init__(self, act: Callable[[Outgoing], Awaitable[Any]] | None = None) -> None:
        self.act = act
        self.sent: list[Outgoing] = []
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def flush(self) -> None:
        self.calls.append("flush")

    async def send_message(self, out: Outgoing) -> Any:
        self.sent.append(out)
        return await self.act(out) if self.act else None


def raising(error: BaseException) -> Callable[[Outgoing], Awaitable[Any]]:
    async def act(out: Outgoing) -> Any:
        raise error

    return act


async def forever(_: Any = None) -> None:
    await asyncio.Event().wait()


@pytest.fixture
async def memory() -> AsyncIterator[tuple[EventEmitter, MemoryProducer]]:
    producer = MemoryProducer()
    async with EventEmitter(producer) as emitter:
        yield emitter, producer


# Outcomes


async def test_accepted_emit_returns_a_receipt() -> None:
    """The receipt names event, topic, backend and what the producer told."""

    async def act(out: Outgoing) -> Any:
        return {"offset": 7}

    event = Ping()
    async with EventEmitter(Scripted(act)) as emitter:
        assert await emitter.emit(event) == Receipt(event.id, "pings.me", "scripted", {"offset": 7})


async def test_custom_producer_reads_its_plain_config_in_send() -> None:
    """The documents' custom producer works as it stands."""
    seen = []

    class MyProducer(Producer):
        event_config = MyCustomConfig

        async def send(self, topic: str, payload: bytes, config: Any = None):  # type: ignore[no-untyped-def]
            seen.append((topic, payload, config.foo))

    event = Ping(__backend_config__=MyCustomConfig(foo=42))
    async with EventEmitter(MyProducer()) as emitter:
        receipt = await emitter.emit(event)
    assert receipt == Receipt(event.id, "pings.me", "MyProducer")
    assert seen[0][0] == "pings.me"
    assert seen[0][2] == 42


@pytest.mark.parametrize("kind", [EmitRejected, EmitUnknown, ProducerTimeout])
async def test_producers_error_is_completed_and_raised(kind: Any) -> None:
    """Errors know their event, backend and topic, though the producer raised them bare."""
    error = kind("no", retriable=True)
    event = Ping()
    async with EventEmitter(Scripted(raising(error))) as emitter:
        with pytest.raises(kind) as caught:
            await emitter.emit(event)
    assert caught.value is error
    assert (error.event, error.backend, error.topic) == (event, "scripted", "pings.me")
    assert error.retriable


async def test_deadline_makes_the_outcome_unknown() -> None:
    """A publish that timed out is a ProducerTimeout, never rejected."""
    event = Ping()
    async with EventEmitter(Scripted(forever), timeout=0.02) as emitter:
        with pytest.raises(ProducerTimeout) as caught:
            await emitter.emit(event)
    assert isinstance(caught.value, EmitUnknown)
    assert not isinstance(caught.value, EmitRejected)
    assert (caught.value.event, caught.value.topic) == (event, "pings.me")


async def test_producers_own_timeout_is_unknown() -> None:
    """A TimeoutError of the client leaves the outcome open too."""
    async with EventEmitter(Scripted(raising(TimeoutError()))) as emitter:
        with pytest.raises(ProducerTimeout):
            await emitter.emit(Ping())


async def test_users_own_exception_is_never_swapped() -> None:
    """What a user's producer, middleware or hook raises arrives as it is."""
    own = RuntimeError("mine")

    async def middleware(ctx: EmitContext, call_next: Any) -> Receipt:
        raise own

    async with EventEmitter(Scripted(raising(own))) as emitter:
        with pytest.raises(RuntimeError) as caught:
            await emitter.emit(Ping())
        assert caught.value is own
    async with EventEmitter(Scripted(), middleware=[middleware]) as emitter:
        with pytest.raises(RuntimeError) as caught:
            await emitter.emit(Ping())
        assert caught.value is own


async def test_timeout_error_of_a_hook_is_the_users_own() -> None:
    """A TimeoutError that is not our deadline's is not turned into ours."""
    async with EventEmitter(Scripted()) as emitter:

        @emitter.before_emit
        def veto(event: EventBase) -> None:
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match="mine"):
            await emitter.emit(Ping())


async def test_cancelled_emit_raises_cancelled_error() -> None:
    """Cancelling is not an outcome: it is re-raised."""
    reached = asyncio.Event()

    async def act(out: Outgoing) -> None:
        reached.set()
        await forever()

    async with EventEmitter(Scripted(act)) as emitter:
        task = asyncio.ensure_future(emitter.emit(Ping()))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("who", ["", "a.b"])
async def test_value_unfit_for_a_topic_is_refused(who: str) -> None:
    """A segment's value is not empty and holds no delimiter; nothing is sent."""
    producer = Scripted()
    async with EventEmitter(producer) as emitter:
        with pytest.raises(TopicError) as caught:
            await emitter.emit(Ping(who=who))
    assert caught.value.field == "who"
    assert producer.sent == []


async def test_something_that_is_no_event_is_refused(memory: Any) -> None:
    """Emitting anything but an event says so."""
    with pytest.raises(Exception, match="EventBase"):
        await memory[0].emit({"a": 1})


def test_errors_survive_pickle() -> None:
    """Errors cross process boundaries with what they know."""
    error = pickle.loads(pickle.dumps(EmitRejected("no", topic="t", retriable=True)))
    assert (str(error), error.topic, error.retriable) == ("no", "t", True)
    many = pickle.loads(pickle.dumps(EmitManyError([Receipt("1", "t", "b"), EmitRejected("no")])))
    assert len(many.results) == 2
    assert "1 of 2" in str(many)


# Lifecycle


async def test_emitting_before_start_and_after_stop_is_rejected_at_once() -> None:
    """Nothing is queued for a producer that does not run."""
    emitter = EventEmitter(MemoryProducer())
    with pytest.raises(EmitRejected, match="not running"):
        await emitter.emit(Ping())
    async with emitter:
        await emitter.emit(Ping())
    with pytest.raises(EmitRejected, match="not running"):
        await emitter.emit(Ping())
    with pytest.raises(EmitRejected, match="not running"):
        await emitter.emit_many([Ping()])
    async with emitter:
        await emitter.emit(Ping())


async def test_emitting_in_another_loop_is_rejected_at_once(memory: Any) -> None:
    """An emitter belongs to the loop it was started in."""

    def elsewhere() -> None:
        asyncio.run(memory[0].emit(Ping()))

    with pytest.raises(EmitRejected, match="another event loop"):
        await asyncio.to_thread(elsewhere)
    with pytest.raises(ConfigError, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(memory[0].start()))


def test_emitting_in_a_forked_process_is_rejected_at_once() -> None:
    """A child must not write into its parent's connection."""

    async def parent() -> int:
        async with EventEmitter(MemoryProducer()) as emitter:
            emitter._lifecycle._process = os.getpid() + 1  # as the child of a fork would see it
            with pytest.raises(EmitRejected, match="process"):
                await emitter.emit(Ping())
            emitter._lifecycle._process = os.getpid()
            return len((await emitter.emit(Ping())).event_id)

    assert asyncio.run(parent()) == 36


async def test_leaving_flushes_and_stops_the_producer() -> None:
    """Stopping is idempotent; stop never raises what the producer raises."""
    producer = Scripted()
    async with EventEmitter(producer) as emitter:
        await emitter.start()
    await emitter.stop()
    assert producer.calls == ["start", "flush", "stop"]


class Stubborn(Scripted):
    async def flush(self) -> None:
        await forever()

    async def stop(self) -> None:
        raise asyncio.CancelledError


async def test_stop_returns_though_the_producer_hangs_or_cancels(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that hangs or raises CancelledError in stop is logged, and stop returns."""
    emitter = EventEmitter(Stubborn(), timeout=0.05)
    async with emitter:
        with pytest.raises(ProducerTimeout):
            await emitter.flush()
    assert "flush gave up" in caplog.text
    assert "cancelled from within" in caplog.text


class Unreachable(Scripted):
    async def start(self) -> None:
        await forever()


async def test_start_that_takes_too_long_is_a_connect_error_and_cleans_up() -> None:
    """A start that fails leaves nothing behind."""
    producer = Unreachable()
    with pytest.raises(ConnectError, match="not connected"):
        await EventEmitter(producer, timeout=0.02).start()
    assert producer.calls == ["stop"]


@pytest.mark.parametrize("timeout", [None, "5", 0, -1, float("inf"), float("nan"), True])
def test_timeout_that_is_no_time_is_refused(timeout: Any) -> None:
    """The deadline is a positive number of seconds."""
    with pytest.raises(ConfigError, match="timeout"):
        EventEmitter(MemoryProducer(), timeout=timeout)


@pytest.mark.parametrize("wrong", [object(), Producer(), MemoryProducer])
def test_what_can_not_send_is_refused_when_the_emitter_is_built(wrong: Any) -> None:
    """A raw client, a producer without send, a class: each says what is missing."""
    with pytest.raises(ConfigError, match=r"Producer|send"):
        EventEmitter(wrong)


# Hooks


async def test_hooks_run_in_order_sync_or_async(memory: Any) -> None:
    """before_emit, then the send, then after_emit; decorated functions stay what they are."""
    emitter, producer = memory
    seen: list[Any] = []

    @emitter.before_emit
    def first(event: EventBase) -> None:
        seen.append(("before", len(producer.messages)))

    @emitter.before_emit
    async def second(event: EventBase) -> None:
        seen.append(("before too", event))

    @emitter.after_emit
    async def third(event: EventBase, receipt: Receipt) -> None:
        seen.append(("after", receipt))

    event = Ping()
    receipt = await emitter.emit(event)
    assert seen == [("before", 0), ("before too", event), ("after", receipt)]
    assert first.__name__ == "first"


async def test_veto_propagates_as_it_is_and_nothing_is_sent(memory: Any) -> None:
    """A before_emit hook that raises stops the emit; on_error is not told of a veto."""
    emitter, producer = memory
    told: list[Any] = []
    emitter.on_error(lambda event, error: told.append(error))

    @emitter.before_emit
    def veto(event: EventBase) -> None:
        raise PermissionError("not today")

    with pytest.raises(PermissionError, match="not today"):
        await emitter.emit(Ping())
    with pytest.raises(EmitManyError) as caught:
        await emitter.emit_many([Ping()])
    assert isinstance(caught.value.results[0], PermissionError)
    assert producer.messages == []


@pytest.mark.parametrize("many", [False, True])
async def test_failure_is_told_to_on_error_and_still_raised(many: bool) -> None:
    """on_error gets the completed error."""
    told: list[Any] = []
    event = Ping()
    async with EventEmitter(Scripted(raising(EmitRejected("no")))) as emitter:
        emitter.on_error(lambda event, error: told.append((event, error.topic)))
        emitter.on_timeout(lambda event: told.append("timeout"))
        with pytest.raises(EmitManyError if many else EmitRejected):
            await (emitter.emit_many([event]) if many else emitter.emit(event))
    assert told == [(event, "pings.me")]


@pytest.mark.parametrize("many", [False, True])
async def test_timeout_is_told_to_on_timeout_instead(many: bool) -> None:
    """on_timeout is called instead of on_error."""
    told: list[Any] = []
    event = Ping()
    async with EventEmitter(Scripted(forever), timeout=0.5) as emitter:
        emitter.on_error(lambda event, error: told.append("error"))
        emitter.on_timeout(told.append)
        with pytest.raises(EmitManyError if many else ProducerTimeout):
            await (emitter.emit_many([event]) if many else emitter.emit(event))
    assert told == [event]


async def test_failing_observer_is_logged_and_changes_nothing(
    memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An observer's failure costs neither the receipt nor the other observers."""
    emitter, _ = memory
    told: list[Any] = []

    @emitter.after_emit
    def broken(event: EventBase, receipt: Receipt) -> None:
        raise RuntimeError("observer")

    emitter.after_emit(lambda event, receipt: told.append(receipt))
    receipt = await emitter.emit(Ping())
    assert told == [receipt]
    assert "broken" in caplog.text


async def test_hanging_observer_does_not_hold_the_receipt_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An observer has until a second after the deadline."""
    async with EventEmitter(MemoryProducer(), timeout=0.5) as emitter:
        emitter.after_emit(lambda event, receipt: forever())
        assert await emitter.emit(Ping())
    assert "hook" in caplog.text


# Middleware


async def test_middleware_wraps_the_send_in_order(memory: Any) -> None:
    """The first middleware is the outermost; each sees the context and the receipt."""
    seen: list[str] = []

    def named(name: str) -> Any:
        async def middleware(ctx: EmitContext, call_next: Any) -> Receipt:
            seen.append(f"{name} {ctx.topic} {ctx.key}")
            receipt: Receipt = await call_next(ctx)
            seen.append(name)
            return receipt

        return middleware

    async with EventEmitter(MemoryProducer(), middleware=[named("a"), named("b")]) as emitter:
        await emitter.emit(Ping())
    assert seen == ["a pings.me me", "b pings.me me", "b", "a"]


async def test_headers_set_by_middleware_travel() -> None:
    """ctx.headers becomes the backend's headers; what else is set counts too."""

    async def traced(ctx: EmitContext, call_next: Any) -> Receipt:
        ctx.headers["trace"] = "abc"
        ctx.topic, ctx.key = "elsewhere", "k"
        return await call_next(ctx)  # type: ignore[no-any-return]

    producer = MemoryProducer()
    async with EventEmitter(producer, middleware=[traced]) as emitter:
        assert (await emitter.emit(Ping())).topic == "elsewhere"
        await emitter.emit_many([Ping(), Ping()])
    assert [(m.topic, m.key, m.headers) for m in producer.messages] == [
        ("elsewhere", "k", {"trace": "abc"})
    ] * 3


async def test_headers_on_a_backend_without_headers_are_refused() -> None:
    """They would be lost otherwise."""

    async def traced(ctx: EmitContext, call_next: Any) -> Receipt:
        ctx.headers["trace"] = "abc"
        return await call_next(ctx)  # type: ignore[no-any-return]

    producer = Scripted()
    async with EventEmitter(producer, middleware=[traced]) as emitter:
        with pytest.raises(ConfigError, match="trace"):
            await emitter.emit(Ping())
    assert producer.sent == []


async def test_config_set_by_middleware_must_be_of_the_backend() -> None:
    """A middleware may replace the config, by one of this backend's."""

    async def wrong(ctx: EmitContext, call_next: Any) -> Receipt:
        class Other(BaseModel):
            pass

        ctx.config = Other()
        return await call_next(ctx)  # type: ignore[no-any-return]

    async with EventEmitter(Scripted(), middleware=[wrong]) as emitter:
        with pytest.raises(ConfigMismatchError):
            await emitter.emit(Ping())


async def test_deadline_covers_middleware_and_hooks() -> None:
    """The deadline is the whole emit's, not the send's."""

    async def slow(ctx: EmitContext, call_next: Any) -> Receipt:
        await forever()
        raise AssertionError

    async with EventEmitter(Scripted(), middleware=[slow], timeout=0.02) as emitter:
        with pytest.raises(ProducerTimeout):
            await emitter.emit(Ping())
    async with EventEmitter(Scripted(), timeout=0.02) as emitter:
        emitter.before_emit(forever)
        with pytest.raises(ProducerTimeout):
            await emitter.emit(Ping())


# Batches


async def test_emit_many_returns_receipts_in_order(memory: Any) -> None:
    """One receipt per event, in the order given."""
    emitter, producer = memory
    events = [Ping(who=str(n % 7), n=n) for n in range(500)]
    receipts = await emitter.emit_many(event for event in events)
    assert [receipt.event_id for receipt in receipts] == [event.id for event in events]
    assert [message.event_id for message in producer.messages] == [event.id for event in events]
    assert await emitter.emit_many([]) == []


async def test_emit_many_sends_all_it_can_but_nothing_after_a_failure_of_the_key() -> None:
    """Other keys go on; later events of a failed key are rejected unsent."""

    async def act(out: Outgoing) -> None:
        if b'"n":3}' in out.payload:
            raise EmitRejected("three")

    producer = Scripted(act)
    events = [Ping(who=str(n % 2), n=n) for n in range(8)]
    async with EventEmitter(producer) as emitter:
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many(events)
    results = caught.value.results
    failed = [n for n, result in enumerate(results) if isinstance(result, EmitRejected)]
    assert failed == [3, 5, 7]
    assert all(isinstance(results[n], Receipt) for n in (0, 1, 2, 4, 6))
    assert len(producer.sent) == 6
    assert results[5].event is events[5]
    assert results[5].topic == "pings.1"
    assert "3 of 8" in str(caught.value)


@pytest.mark.parametrize("middleware", [False, True])
async def test_one_bad_event_in_a_batch_fails_alone(middleware: bool) -> None:
    """A mistake in one event is that event's result, and holds back its key only."""

    async def through(ctx: EmitContext, call_next: Any) -> Receipt:
        return await call_next(ctx)  # type: ignore[no-any-return]

    class Other(BaseModel):
        pass

    producer = Scripted()
    events: list[EventBase] = [Ping(who=str(n % 4), n=n) for n in range(12)]
    events[5] = Ping(who="1", n=5, __backend_config__=Other())
    events[6] = Keyless(x=float("nan"))
    async with EventEmitter(producer, middleware=[through] if middleware else []) as emitter:
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many(events)
    failed = {n: r for n, r in enumerate(caught.value.results) if isinstance(r, Exception)}
    assert {n: type(error) for n, error in failed.items()} == {
        5: ConfigMismatchError, 6: EncodeError, 9: EmitRejected
    }  # fmt: skip
    assert len(producer.sent) == 9


async def test_emit_many_reports_each_outcome_at_the_deadline() -> None:
    """What was confirmed keeps its receipt, what was open is unknown, what never left rejected."""

    async def act(out: Outgoing) -> None:
        if b'"n":2,' in out.payload:
            await forever()

    producer = Scripted(act)
    async with EventEmitter(producer, timeout=0.5) as emitter:
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many([Keyless(n=n) for n in range(4)])
    kinds = [type(result) for result in caught.value.results]
    assert kinds == [Receipt, Receipt, ProducerTimeout, EmitRejected]
    assert len(producer.sent) == 3


class HangingBatch(Scripted):
    async def send_messages(self, batch: Any) -> Any:
        await forever()


async def test_batch_that_outlives_its_deadline_is_unknown() -> None:
    """A producer that ignores the deadline of a batch is cut off."""
    async with EventEmitter(HangingBatch(), timeout=0.01) as emitter:
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many([Ping(), Ping()])
    assert [type(result) for result in caught.value.results] == [ProducerTimeout] * 2


async def test_middleware_that_waits_does_not_reorder_a_key() -> None:
    """With middleware each event goes through it, in order per key."""

    async def uneven(ctx: EmitContext, call_next: Any) -> Receipt:
        for _ in range(7 - ctx.event.n % 7):  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        return await call_next(ctx)  # type: ignore[no-any-return]

    producer = MemoryProducer()
    async with EventEmitter(producer, middleware=[uneven]) as emitter:
        await emitter.emit_many([Ping(who=str(n % 5), n=n) for n in range(100)])
    for who in range(5):
        ids = [message.event_id for message in producer.broker.on(f"pings.{who}")]
        assert len(ids) == 20
        assert ids == sorted(ids, key=[m.event_id for m in producer.messages].index)
        numbers = [m.payload for m in producer.broker.on(f"pings.{who}")]
        found = [int(p.split(b'"n":')[1].split(b"}")[0]) for p in numbers]
        assert found == sorted(found)


# The way of an event


async def test_way_from_emit_to_send_is_at_most_four_frames() -> None:
    """Four Python frames from emit() to the producer's send(), both counted."""
    frames: list[str] = []

    class Deep(Producer):
        async def send(self, topic: str, payload: bytes, config: Any = None) -> None:
            frame: Any = sys._getframe()
            while frame.f_code is not EventEmitter.emit.__code__:
                frames.append(frame.f_code.co_name)
                frame = frame.f_back

    async with EventEmitter(Deep()) as emitter:
        await emitter.emit(Ping())
    assert len(frames) + 1 <= 4, frames


async def test_emitting_looks_nothing_up(monkeypatch: pytest.MonkeyPatch, memory: Any) -> None:
    """Nothing on the way of an event asks pluggy or the plugin registry."""
    from dispytch import plugins

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("looked up")

    for name in ("_scan", "get_backend", "announce"):
        monkeypatch.setattr(plugins, name, forbidden)
    monkeypatch.setattr("pluggy.PluginManager.get_plugin", forbidden)
    await memory[0].emit(Ping())
    await memory[0].emit_many([Ping()])


def test_repr_tells_backend_and_state() -> None:
    """An emitter's repr is short and holds no secret."""
    assert repr(EventEmitter(MemoryProducer())) == "<EventEmitter memory not started>"


async def test_from_url_shares_the_broker_of_a_name() -> None:
    """`memory://name` is one broker per name and process; names are case-sensitive."""
    async with (
        EventEmitter.from_url("memory://Orders") as one,
        EventEmitter.from_url("memory://Orders") as two,
        EventEmitter.from_url("memory://orders") as other,
    ):
        await one.emit(Ping())
        brokers = [emitter.producer.broker for emitter in (one, two, other)]  # type: ignore[attr-defined]
        assert brokers[0] is brokers[1]
        assert brokers[0] is not brokers[2]
        brokers[0].clear()


def test_logger_is_named_after_the_package() -> None:
    """Everything logged goes to the logger `dispytch`."""
    from dispytch.emitter import lifecycle

    assert lifecycle.logger is logging.getLogger("dispytch")


async def test_configs_of_several_backends_with_placeholders_reach_memory(
    memory: tuple[EventEmitter, MemoryProducer],
) -> None:
    """A class with a config for each of two backends, both naming fields, is emitted in memory."""

    class First(BaseModel):
        key: str

    class Second(BaseModel):
        name: str

    class Both(EventBase):
        __topic__ = "both"
        __event_type__ = "both"
        __backend_config__ = (First(key="{who}"), Second(name="{who}"))
        who: str

    emitter, producer = memory
    await emitter.emit(Both(who="me"))
    assert producer.messages[0].config == (First(key="me"), Second(name="me"))


async def test_two_class_configs_for_one_backend_are_refused_by_name() -> None:
    """Two configs in one class that a single backend would take are told by name."""

    class Sub(MyCustomConfig):
        pass

    class Twice(EventBase):
        __topic__ = "twice"
        __event_type__ = "twice"
        __backend_config__ = (MyCustomConfig(foo=1), Sub(foo=2))

    async with EventEmitter(Scripted()) as emitter:
        with pytest.raises(ConfigError, match="MyCustomConfig and Sub are both MyCustomConfig"):
            await emitter.emit(Twice())


async def pass_on(ctx: EmitContext, call_next: Any) -> Receipt:
    receipt: Receipt = await call_next(ctx)
    return receipt


async def test_emit_many_with_middleware_has_one_deadline() -> None:
    """However many events wait their turn, the batch ends soon after its deadline."""
    emitter = EventEmitter(Scripted(forever), middleware=[pass_on], timeout=0.5)
    async with emitter, asyncio.timeout(2):
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many([Keyless(n=n) for n in range(100)])
    first, *rest = caught.value.results
    assert isinstance(first, ProducerTimeout)
    assert {type(result) for result in rest} == {EmitRejected}


async def test_veto_in_a_batch_is_not_told_to_on_error(memory: Any) -> None:
    """The hook that raised knows, in a batch as on its own."""
    emitter, _ = memory
    told: list[Any] = []
    emitter.on_error(lambda _event, error: told.append(error))

    @emitter.before_emit
    def veto(event: Ping) -> None:
        if event.n:
            raise KeyError(event.n)

    with pytest.raises(EmitManyError) as caught:
        await emitter.emit_many([Ping(who="a"), Ping(who="b", n=1)])
    assert isinstance(caught.value.results[1], KeyError)
    assert told == []


@pytest.mark.parametrize("many", [False, True])
async def test_producers_own_timeout_is_unknown_in_a_batch_too(many: bool) -> None:
    """One event or several: a TimeoutError of the producer is `ProducerTimeout`, cause chained."""
    own = TimeoutError("mine")
    told: list[Any] = []
    async with EventEmitter(Scripted(raising(own))) as emitter:
        emitter.on_timeout(told.append)
        with pytest.raises((ProducerTimeout, EmitManyError)) as caught:
            await (emitter.emit_many([Ping()]) if many else emitter.emit(Ping()))
    error: Any = (
        caught.value.results[0] if isinstance(caught.value, EmitManyError) else caught.value
    )
    assert isinstance(error, ProducerTimeout)
    assert len(told) == 1
    cause: Any = error.__cause__
    while cause is not own:
        cause = cause.__cause__


async def test_middleware_that_returns_no_receipt_is_told() -> None:
    """A forgotten `return` neither passes for an accepted emit nor fails without a reason."""

    async def forgetful(ctx: EmitContext, call_next: Any) -> Any:
        await call_next(ctx)

    async with EventEmitter(MemoryProducer(), middleware=[forgetful]) as emitter:
        with pytest.raises(EmitUnknown, match="NoneType") as caught:
            await emitter.emit(Ping())
    assert caught.value.topic == "pings.me"


async def test_stop_cancelled_while_it_flushes_still_stops_the_producer() -> None:
    """A second Ctrl-C must not leave a client open that nothing can close any more."""

    class Flushing(Scripted):
        async def flush(self) -> None:
            await forever()

        async def stop(self) -> None:
            stopped.set()

    stopped = asyncio.Event()
    emitter = EventEmitter(Flushing())
    await emitter.start()
    stopping = asyncio.create_task(emitter.stop())
    await asyncio.sleep(0.01)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert stopped.is_set()


async def test_emit_refused_before_start_names_its_topic() -> None:
    """Every EmitError carries event, backend and topic."""
    with pytest.raises(EmitRejected) as caught:
        await EventEmitter(MemoryProducer()).emit(Ping())
    assert (caught.value.topic, caught.value.backend) == ("pings.me", "memory")


async def test_stop_waits_for_what_is_under_way() -> None:
    """Leaving flushes: an emit under way ends before its producer is stopped."""
    sent, release = asyncio.Event(), asyncio.Event()

    async def act(out: Outgoing) -> None:
        sent.set()
        await release.wait()

    producer = Scripted(act)
    emitter = EventEmitter(producer)
    await emitter.start()
    emitting = asyncio.ensure_future(emitter.emit(Ping()))
    batch = asyncio.ensure_future(emitter.emit_many([Keyless()]))
    await sent.wait()
    stopping = asyncio.ensure_future(emitter.stop())
    await asyncio.sleep(0)
    with pytest.raises(EmitRejected):
        await emitter.emit(Ping())
    assert "stop" not in producer.calls
    release.set()
    await stopping
    assert producer.calls == ["start", "flush", "stop"]
    assert isinstance(await emitting, Receipt)
    assert len(await batch) == 1


async def test_starts_and_stops_at_once_do_not_mix() -> None:
    """Concurrent starts start once; a stop during a start stops what it started."""
    producer = Scripted()
    emitter = EventEmitter(producer)
    await asyncio.gather(emitter.start(), emitter.start())
    assert producer.calls == ["start"]
    await emitter.stop()
    starting = asyncio.ensure_future(emitter.start())
    await asyncio.sleep(0)
    await asyncio.gather(emitter.stop(), starting)
    with pytest.raises(EmitRejected):
        await emitter.emit(Ping())
    assert producer.calls.count("stop") == 2


async def test_stopping_in_another_loop_is_refused() -> None:
    """Only the loop an emitter runs in can stop it."""
    producer = Scripted()
    async with EventEmitter(producer) as emitter:
        with pytest.raises(ConfigError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(emitter.stop()))
        assert await emitter.emit(Ping())


def test_emitter_can_be_started_again_in_another_loop() -> None:
    """A stopped emitter, or one whose loop is gone, may run elsewhere."""
    emitter = EventEmitter(Scripted())

    async def once(stop: bool) -> None:
        await asyncio.gather(emitter.start(), emitter.start())
        await emitter.emit(Ping())
        if stop:
            await asyncio.gather(emitter.stop(), emitter.stop())

    for stop in (True, False, True):
        asyncio.run(once(stop))


class FailingBatch(Scripted):
    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    async def send_messages(self, batch: Any) -> Any:
        if self.error is None:
            return [None]
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EmitUnknown("x"), EmitUnknown), (RuntimeError("mine"), RuntimeError),
        (TimeoutError(), ProducerTimeout), (None, EmitUnknown),
    ],
)  # fmt: skip
async def test_batch_that_fails_as_a_whole_is_each_events_outcome(
    error: Exception | None, kind: type[Exception]
) -> None:
    """A producer whose send_messages raises, or miscounts, still leaves a result per event."""
    told: list[Any] = []
    events = [Ping(n=1), Ping(n=2)]
    async with EventEmitter(FailingBatch(error)) as emitter:
        emitter.on_error(lambda event, error: told.append(event))
        emitter.on_timeout(told.append)
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many(events)
    assert [type(result) for result in caught.value.results] == [kind, kind]
    assert told == events
    if issubclass(kind, EmitUnknown):
        assert [result.event for result in caught.value.results] == events


async def test_hook_that_hangs_in_a_batch_leaves_nothing_sent() -> None:
    """What was never handed over is certainly not stored."""
    producer = Scripted()
    async with EventEmitter(producer, timeout=0.01) as emitter:
        emitter.before_emit(forever)
        with pytest.raises(EmitManyError) as caught:
            await emitter.emit_many([Ping(), Ping()])
    assert [type(result) for result in caught.value.results] == [EmitRejected] * 2
    assert producer.sent == []


async def test_one_where_several_belong_is_explained(memory: Any) -> None:
    """A lone event or middleware is told from a list of them."""
    with pytest.raises(ConfigError, match="several events"):
        await memory[0].emit_many(Ping())
    with pytest.raises(ConfigError, match="list of middleware"):
        EventEmitter(MemoryProducer(), middleware=forever)  # type: ignore[arg-type]


class _Late(Producer):
    """Never confirms what is due; the others at once."""

    backend = "late"

    def __init__(self) -> None:
        self.stuck = asyncio.Event()

    async def send_message(self, out: Outgoing) -> None:
        if out.key == "stuck":
            await self.stuck.wait()


class _Keyed(EventBase):
    __topic__ = "keyed"
    __event_type__ = "keyed"
    __key__ = "{name}"

    name: str


async def test_emits_that_are_late_end_in_time_whatever_others_do() -> None:
    """One timer watches all emits: those before and after one that is stuck don't disturb it."""
    async with EventEmitter(_Late(), timeout=0.2) as emitter:
        began = asyncio.get_running_loop().time()
        stuck = [asyncio.create_task(emitter.emit(_Keyed(name="stuck"))) for _ in range(3)]
        for number in range(100):
            await emitter.emit(_Keyed(name=f"{number}"))
        late = asyncio.create_task(emitter.emit(_Keyed(name="stuck")))
        for each in (*stuck, late):
            with pytest.raises(ProducerTimeout):
                await each
        assert asyncio.get_running_loop().time() - began < 5
        await emitter.emit(_Keyed(name="after"))


async def test_an_emit_cancelled_while_it_is_late_is_cancelled() -> None:
    """A cancellation from outside is not swallowed by a deadline that comes with it."""
    async with EventEmitter(_Late(), timeout=0.05) as emitter:
        task = asyncio.create_task(emitter.emit(_Keyed(name="stuck")))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.05, task.cancel)
        await asyncio.wait({task})
        assert task.cancelled() or isinstance(task.exception(), ProducerTimeout)
        other = asyncio.create_task(emitter.emit(_Keyed(name="stuck")))
        await asyncio.sleep(0)
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        assert other.cancelled()


async def test_a_deadline_that_is_swallowed_leaves_no_cancellation_behind() -> None:
    """A middleware may end in spite of it; the task that emits is not taken for cancelled then."""

    async def stubborn(ctx: EmitContext, call_next: Any) -> Receipt:
        receipt: Receipt = await call_next(ctx)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return receipt

    async with EventEmitter(_Late(), middleware=[stubborn], timeout=0.05) as emitter:
        assert await emitter.emit(_Keyed(name="kept"))
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


def test_an_emitter_meets_its_deadlines_in_every_loop_it_is_started_in() -> None:
    """Stopped in one event loop and started in another, late emits end there, too."""
    emitter = EventEmitter(_Late(), timeout=0.1)

    async def late() -> None:
        emitter.producer.stuck = asyncio.Event()  # type: ignore[attr-defined]
        async with emitter:
            await emitter.emit(_Keyed(name="first"))
            with pytest.raises(ProducerTimeout):
                await emitter.emit(_Keyed(name="stuck"))

    asyncio.run(late())
    asyncio.run(late())
