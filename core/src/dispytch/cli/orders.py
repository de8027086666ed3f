"""What `dispytch demo` runs: a shop in three steps, written as a service of your own would be.

An order is placed; its handler takes the money and emits that; then the parcel is sent, and at last
the customer is told. Nothing here knows a broker, or how many processes there are: the URL decides.

    SHOP_URL=kafka://localhost:9092 dispytch run dispytch.cli.orders:listener --workers 3
"""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator
from functools import cache
from typing import Annotated, Any

from dispytch import Depends, Event, EventBase, EventEmitter, EventListener, Retry, Router
from dispytch.listener import HandleContext
from dispytch.listener.received import CallNext

__all__ = [
    "CourierBusy",
    "Database",
    "OldOrderPlaced",
    "OrderPlaced",
    "ParcelSent",
    "PaymentTaken",
    "database",
    "emitter",
    "listener",
    "logged",
    "router",
]

URL = os.environ.get("SHOP_URL", "sqlite:///shop.db")
"""Only this changes for kafka://... or amqp://..."""

logger = logging.getLogger("shop")


class OrderPlaced(EventBase):
    """A customer has ordered something."""

    __topic__ = "orders"
    __event_type__ = "order_placed"
    __key__ = "{customer}"  # the events of one customer stay in order

    order: int
    customer: str
    cents: int


class PaymentTaken(EventBase):
    """An order is paid for."""

    __topic__ = "payments"
    __event_type__ = "payment_taken"
    __key__ = "{customer}"

    order: int
    customer: str


class ParcelSent(EventBase):
    """An order is on its way."""

    __topic__ = "parcels"
    __event_type__ = "parcel_sent"
    __key__ = "{customer}"

    order: int
    customer: str


class OldOrderPlaced(EventBase):
    """The poison: what a service that nobody has updated still emits. It names no customer."""

    __topic__ = "orders"
    __event_type__ = "order_placed"

    order: int


class CourierBusy(Exception):  # noqa: N818 - it says what happened
    """The courier has no time now."""


class Database:
    """A connection to a database, as far as a demo needs one."""

    async def save(self) -> None:
        """Take as long as a real one may on a bad day."""
        await asyncio.sleep(random.uniform(0.2, 0.4))  # noqa: S311 - no secret

    async def close(self) -> None:
        """Give it back."""


async def database() -> AsyncIterator[Database]:
    """A connection for one event, closed when its handler is done, also where it failed."""
    db = Database()
    try:
        yield db
    finally:
        await db.close()


@cache
def _emitter() -> EventEmitter:
    return EventEmitter.from_url(URL)


async def emitter() -> EventEmitter:
    """The emitter of this process, started by the first event that needs it."""
    await _emitter().start()
    return _emitter()


async def logged(ctx: HandleContext, call_next: CallNext) -> Any:
    """Log what is begun, and how it ends: the demo reads that."""
    step, body = ctx.handler.rpartition(":")[2], ctx.event.body
    what = f"{step} order={body.order} customer={body.customer}"
    logger.info("begins %s", what)
    try:
        result = await call_next(ctx)
    except Exception:
        logger.info("fails %s", what)
        raise
    logger.info("ends %s", what)
    return result


router = Router(retry=Retry(attempts=3, base=0.3), middleware=[logged])


@router.handler(OrderPlaced)
async def take_payment(
    event: Event[OrderPlaced],
    db: Annotated[Database, Depends(database)],
    emitter: Annotated[EventEmitter, Depends(emitter)],
) -> None:
    """The first step."""
    await db.save()
    order = event.body
    await emitter.emit(PaymentTaken(order=order.order, customer=order.customer))


@router.handler(PaymentTaken)
async def send_parcel(
    event: Event[PaymentTaken],
    db: Annotated[Database, Depends(database)],
    emitter: Annotated[EventEmitter, Depends(emitter)],
) -> None:
    """The second step. For order 3 it takes three attempts."""
    order = event.body
    if order.order == 3 and event.attempt < 3:
        raise CourierBusy(f"no courier for order {order.order} yet")
    await db.save()
    await emitter.emit(ParcelSent(order=order.order, customer=order.customer))


@router.handler(ParcelSent)
async def tell_customer(
    event: Event[ParcelSent], db: Annotated[Database, Depends(database)]
) -> None:
    """The last step."""
    await db.save()


def listener() -> EventListener:
    """What `dispytch run` runs, in each of its workers."""
    made = EventListener.from_url(URL, group="shop")
    made.include_router(router)
    return made
