"""FailingTests: consumers, brokers and networks that fail while events flow."""

import asyncio
import signal
import subprocess
import time

from dispytch.errors import ConnectError
from dispytch.listener import Event, EventListener
from dispytch.producer import Receipt
from dispytch.testing.conformance.flow import EVENTS, IN_FLIGHT, Flow
from dispytch.testing.conformance.hooks import Broker, Network
from dispytch.testing.conformance.kit import Kit, Numbered, is_short
from dispytch.testing.conformance.load import EMITTERS, Load
from dispytch.testing.conformance.promise import promised
from dispytch.testing.conformance.report import Fault, Report
from dispytch.testing.conformance.workers import Workers

__all__ = ["FailingTests"]

OUTAGE = 15.0
"""Seconds that a broker is frozen, and that a network swallows everything."""

START_TIMEOUT = 10.0
"""Seconds that a listener gives its start."""

LATE = 5.0
"""Seconds it may take beyond that."""

_KEPT = ("manual_ack", "groups", "durable", "confirms")


class FailingTests:
    """What holds when something breaks: everything confirmed is handled.

    Each fault happens while events are emitted and handled. Afterwards nothing that was confirmed
    is missing, a handler ran again only for what was under way, events of one key were handled in
    order where the backend orders by key, new events are handled, and `health()` is good again.
    """

    @promised(
        look="what becomes of unsettled deliveries when their consumer dies: the broker must "
        "notice and give them to the others of the group, before later events of their key",
        needs=("other processes", "manual_ack", "groups", "confirms"),
        within=300,
    )
    async def test_killed_consumer_loses_nothing(self, kit: Kit) -> None:
        """What a killed consumer had begun is handled by others of its group."""
        topic = await kit.topic()
        kind, report = kit.event(topic), Report()
        load = Load(
            await kit.emitter(), lambda n: kind(lane=n % EMITTERS, number=n), report.emitted
        )
        options = {"max_in_flight": IN_FLIGHT, "work": 0.05}
        with Workers(kit.url, topic, kit.folder, **options) as workers:
            alive = [await asyncio.to_thread(workers.start) for _ in range(2)]
            load.start()
            try:
                for kill in range(1, 2 if is_short() else 6):
                    await workers.reach(kill * kit.many(2_000), kit.suite.recovery)
                    report.faults.append(await _kill_one(kit, workers, alive, report))
            finally:
                await load.end()
            await workers.until(
                lambda: report.confirmed <= _ids(workers),
                kit.suite.recovery,
                f"all of {len(report.confirmed)} confirmed events to be handled",
            )
            for process in alive:
                await asyncio.to_thread(workers.terminate, process)
        for each in workers.handled():
            report.finished(each)
        failed = [e.outcome for e in report.emits if not isinstance(e.outcome, Receipt)]
        assert not failed, f"an emit raised {failed[0]!r} with the broker at work"
        report.check(repeatable=kit.suite.uncommitted, ordered=kit.keeps_order)

    @promised(
        look="when a confirmation is given (after the broker has written the event), and how "
        "producer and consumer connect again: with what they held, and what they subscribed to",
        needs=("broker", *_KEPT),
        within=300,
    )
    async def test_killed_and_restarted_broker_loses_nothing(
        self, kit: Kit, broker: Broker
    ) -> None:
        """Everything confirmed is handled though the broker is killed, and later restarted."""
        count = kit.many(EVENTS)
        async with Flow.through(kit) as flow:
            await flow.handled(count // 3)
            async with flow.fault("killed", repair=broker.start):
                await asyncio.to_thread(broker.kill)
                await flow.noticed()
            await flow.handled(count // 2)
            async with flow.fault("restarted", noticed=False):
                await asyncio.to_thread(broker.restart)

    @promised(
        look="timeouts: a broker that does not answer must be noticed by `ping`, and what was "
        "sent or acknowledged meanwhile must not count as done",
        needs=("broker", *_KEPT),
        within=300,
    )
    async def test_frozen_broker_loses_nothing(self, kit: Kit, broker: Broker) -> None:
        """Everything confirmed is handled though the broker stands still for 15 seconds."""
        async with Flow.through(kit) as flow:
            await flow.handled(kit.many(EVENTS) // 3)
            async with flow.fault("frozen", repair=broker.thaw):
                await asyncio.to_thread(broker.freeze)
                await asyncio.sleep(OUTAGE)

    @promised(
        look="what happens to sends and acknowledgements under way when their connection is lost: "
        "unknown is not confirmed; and whether it is opened again until that succeeds",
        needs=("network", *_KEPT),
        within=300,
    )
    async def test_reset_connections_lose_nothing(self, kit: Kit, network: Network) -> None:
        """Everything confirmed is handled though connections are reset, and then refused."""
        async with Flow.through(kit, network.url) as flow:
            await flow.handled(kit.many(EVENTS) // 3)
            async with flow.fault("reset twice", noticed=False):
                await asyncio.to_thread(network.proxy.reset)
                await flow.more()
                await asyncio.to_thread(network.proxy.reset)
            async with flow.fault("refused", repair=network.proxy.restore):
                await asyncio.to_thread(network.proxy.refuse)
                await flow.noticed()
                await asyncio.sleep(1)  # some notice at once: handlers under way end during it

    @promised(
        look="timeouts and heartbeats: a connection that is open and dead must be noticed and "
        "replaced, and what was sent into it is unknown",
        needs=("network", *_KEPT),
        within=300,
    )
    async def test_black_hole_loses_nothing(self, kit: Kit, network: Network) -> None:
        """Everything confirmed is handled though the network swallows all for 15 seconds."""
        async with Flow.through(kit, network.url) as flow:
            await flow.handled(kit.many(EVENTS) // 3)
            async with flow.fault("swallowed", repair=network.proxy.restore):
                await asyncio.to_thread(network.proxy.black_hole)
                await asyncio.sleep(OUTAGE)

    @promised(
        look="`start` and `subscribe` without a broker: they raise ConnectError or wait, leave "
        "nothing behind, and work when called again",
        needs=("broker", *_KEPT),
        within=300,
    )
    async def test_broker_down_at_first_subscribe_is_survived(
        self, kit: Kit, broker: Broker
    ) -> None:
        """A listener that can't start while the broker is down can when it is back."""
        async with Flow.through(kit) as flow:
            await flow.handled(kit.many(EVENTS) // 3)
            came: set[str] = set()
            second = kit.listener(kit.name("g"), timeout=START_TIMEOUT)

            @second.handler(kit.event(flow.topic))
            async def note(event: Event[Numbered]) -> None:
                came.add(event.id)
                flow.news.tell()

            async with flow.fault("killed", repair=broker.start):
                await asyncio.to_thread(broker.kill)
                starting = asyncio.create_task(_start(second))
                await asyncio.wait({starting}, timeout=START_TIMEOUT + LATE)
                too_early = starting.done() and starting.result() is None
                assert not too_early, "start() returned though the broker was down"
                await flow.noticed()
            await _started(second, starting, kit.suite.recovery)
            fresh = await flow.batch()
            await flow.until(lambda: came.issuperset(fresh))
            await kit.stop(second.stop())


async def _kill_one(
    kit: Kit, workers: Workers, alive: list[subprocess.Popen[bytes]], report: Report
) -> Fault:
    """Kill the one that has the most to do, start another, and see what was begun finished.

    And what was emitted since: the load goes on until then.
    """
    killed, begun = await _held_at_work(workers, alive, kit.suite.recovery)
    fault = Fault("consumer killed", time.monotonic(), under_way=IN_FLIGHT, watched=False)
    await asyncio.to_thread(workers.kill, killed)
    alive.remove(killed)
    alive.append(await asyncio.to_thread(workers.start))
    fault.ended = time.monotonic()
    await workers.until(
        lambda: (
            report.confirmed_since(fault.ended) >= EMITTERS
            and begun <= _ids(workers)
            and workers.handled()[-1].at > fault.ended
        ),
        kit.suite.recovery,
        f"what the killed consumer had begun ({len(begun)} events) to be handled by others",
    )
    return fault


async def _held_at_work(
    workers: Workers, alive: list[subprocess.Popen[bytes]], within: float
) -> tuple[subprocess.Popen[bytes], set[str]]:
    """Stop a worker in the middle of handlers; it, and the events that it has begun."""

    def busiest() -> subprocess.Popen[bytes]:
        return max(alive, key=lambda process: len(workers.interrupted(process)))

    while True:
        await workers.until(
            lambda: bool(workers.interrupted(busiest())), within, "a handler to be at work"
        )
        held = busiest()
        held.send_signal(signal.SIGSTOP)  # what is under way now stays so
        if begun := workers.interrupted(held):
            return held, begun
        held.send_signal(signal.SIGCONT)


def _ids(workers: Workers) -> set[str]:
    return {each.event_id for each in workers.handled()}


async def _start(listener: EventListener) -> ConnectError | None:
    """Start it; what it said to that."""
    try:
        await listener.start()
    except ConnectError as error:
        return error
    return None


async def _started(
    listener: EventListener, starting: asyncio.Task[ConnectError | None], within: float
) -> None:
    """Start again until it works."""
    refused: ConnectError | None = None
    try:
        async with asyncio.timeout(within):
            while (refused := await starting) is not None:
                starting = asyncio.create_task(_start(listener))
                await asyncio.sleep(0.2)  # to be refused takes no time
    except TimeoutError:
        raise AssertionError(f"no start with the broker back: {refused!r}") from None
