"""Without an exchange in the URL: emitters and listeners meet, and named queues work as ever."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from brokers.rabbitmq import RabbitMQ
from dispytch import EmitRejected, EventEmitter
from dispytch_rabbitmq import RabbitMQEventConfig

if TYPE_CHECKING:
    from tests.plugins.rabbitmq.conftest import OpenConsumer

pytest.importorskip("aio_pika")
pytestmark = pytest.mark.rabbitmq


async def test_subscribers_win_over_a_queue_of_the_topics_name(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """Only what no group subscribed to goes to the queue that has the topic's name."""
    own_rabbitmq.declare_queue("both")
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        receipt = await emitter.emit(numbered(to="both"))
        assert receipt.details["exchange"] == ""
        await open_consumer(own_rabbitmq.url, "both")
        receipt = await emitter.emit(numbered(to="both"))
        assert receipt.details["exchange"] == "dispytch"
    assert own_rabbitmq.queue_size("both") == 1


async def test_event_that_may_be_dropped_falls_back_too(
    own_rabbitmq: RabbitMQ, numbered: Any
) -> None:
    """mandatory=False lets the broker drop it only where there is no queue of its name either."""
    own_rabbitmq.declare_queue("droppable")
    config = RabbitMQEventConfig(mandatory=False)
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        await emitter.emit(numbered(to="droppable"), config=config)
        await emitter.emit(numbered(to="nobody-at-all"), config=config)
    assert own_rabbitmq.queue_size("droppable") == 1


@pytest.mark.parametrize("options", ["?exchange=dispytch", "?exchange=shop"])
async def test_named_exchange_does_not_fall_back(
    own_rabbitmq: RabbitMQ, numbered: Any, options: str
) -> None:
    """Whoever names an exchange means it."""
    own_rabbitmq.declare_queue("named")
    async with EventEmitter.from_url(f"{own_rabbitmq.url}{options}", timeout=10) as emitter:
        with pytest.raises(EmitRejected, match="no queue"):
            await emitter.emit(numbered(to="named"))
        config = RabbitMQEventConfig(exchange="")
        await emitter.emit(numbered(to="named"), config=config)
    assert own_rabbitmq.read_queue("named", 1)


async def test_empty_exchange_is_amqps_default_one(own_rabbitmq: RabbitMQ, numbered: Any) -> None:
    """`?exchange=` means named queues only."""
    own_rabbitmq.declare_queue("only")
    async with EventEmitter.from_url(f"{own_rabbitmq.url}?exchange=", timeout=10) as emitter:
        assert (await emitter.emit(numbered(to="only"))).details["exchange"] == ""


async def test_order_of_a_key_is_kept_over_the_fallback(
    own_rabbitmq: RabbitMQ, numbered: Any
) -> None:
    """Events of a key that go both ways still go one after the other."""
    own_rabbitmq.declare_queue("sequence")
    events = [numbered(to="sequence", lane=str(n % 5), number=n) for n in range(300)]
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        await emitter.emit_many(events)
    got = await asyncio.to_thread(own_rabbitmq.read_queue, "sequence", 300)
    for lane in map(str, range(5)):
        ids = [event.id for event in events if event.lane == lane]
        mine = [one for one in got if one.headers["x-dispytch-key"] == lane]
        assert [one.properties["message_id"] for one in mine] == ids


@pytest.mark.parametrize("right", ["configure", "write"])
async def test_user_who_may_not_use_it_still_emits(
    right: str,
    own_rabbitmq: RabbitMQ,
    numbered: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without the right to the exchange, queues named as the topics get the events; it is told."""
    own_rabbitmq.declare_queue("reachable")
    await asyncio.to_thread(own_rabbitmq.ctl, "eval", _DELETE)
    user = f"no-{right}"
    own_rabbitmq.add_user(user, user)
    rights = {"configure": ".*", "write": "amq.default"} | {right: "amq.default"}
    own_rabbitmq.set_permissions(user, **rights)
    caplog.set_level(logging.WARNING)
    url = own_rabbitmq.url_for(user=user, password=user)
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        for _ in range(3):
            receipt = await emitter.emit(numbered(to="reachable"))
            assert receipt.details["exchange"] == ""
        with pytest.raises(EmitRejected, match="no queue"):
            await emitter.emit(numbered(to="nobody-at-all"))
    assert "exchange 'dispytch'" in caplog.text
    assert user not in caplog.text


async def test_exchange_that_appears_later_is_found(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """An emitter that may not declare it meets the listener that did, once it is there."""
    await asyncio.to_thread(own_rabbitmq.ctl, "eval", _DELETE)
    own_rabbitmq.add_user("emits", "emits")
    own_rabbitmq.set_permissions("emits", configure="")
    url = own_rabbitmq.url_for(user="emits", password="emits")
    async with EventEmitter.from_url(url, timeout=10) as emitter:
        with pytest.raises(EmitRejected, match="no queue"):
            await emitter.emit(numbered(to="later"))
        await open_consumer(own_rabbitmq.url, "later")
        receipt = await emitter.emit(numbered(to="later"))
        assert receipt.details["exchange"] == "dispytch"


async def test_exchange_deleted_meanwhile_is_declared_again(
    own_rabbitmq: RabbitMQ, open_consumer: "OpenConsumer", numbered: Any
) -> None:
    """An exchange that goes away is not gone for good."""
    first = await open_consumer(own_rabbitmq.url, "back")
    async with EventEmitter.from_url(own_rabbitmq.url, timeout=10) as emitter:
        await emitter.emit(numbered(to="back"))
        await asyncio.to_thread(own_rabbitmq.ctl, "eval", _DELETE)
        await first.stop()
        await asyncio.gather(
            *(emitter.emit(numbered(to="back")) for _ in range(3)), return_exceptions=True
        )
        await open_consumer(own_rabbitmq.url, "back")
        assert (await emitter.emit(numbered(to="back"))).details["exchange"] == "dispytch"


_DELETE = (
    'rabbit_exchange:delete(rabbit_misc:r(<<"/">>, exchange, <<"dispytch">>), false, <<"t">>).'
)
