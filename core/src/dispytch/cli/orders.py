"""What `dispytch demo` runs: a shop in three steps, written as a service of your own would be.

An order is placed; its handler takes the money and emits that; then the parcel is sent, and at last
the customer is told. Nothing here knows a broker: the URL decides.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Annotated, ClassVar

from dispytch.emitter import EventEmitter
from dispytch.event import EventBase
from dispytch.listener import Depends, Event, Retry, Router

__all__ = [
    "CourierBusy",
    "Database",
    "OldOrderPlaced",
    "OrderPlaced",
    "ParcelSent",
    "PaymentTaken",
    "database",
    "emitter",
    "router",
]

URL = "memory://demo"
"""Only this changes for kafka://... or amqp://..."""

emitter = EventEmitter.from_url(URL)
router = Router(retry=Retry(attempts=3, base=0.3))


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

    connected: ClassVar[int] = 0

    async def save(self) -> None:
        """Take as long as a real one may."""
        await asyncio.sleep(random.uniform(0.1, 0.3))  # noqa: S311 - no secret


async def database() -> AsyncIterator[Database]:
    """A connection for one event, closed when its handlers are done, also where they failed."""
    Database.connected += 1
    try:
        yield Database()
    finally:
        Database.connected -= 1


@router.handler(OrderPlaced)
async def take_payment(
    event: Event[OrderPlaced], db: Annotated[Database, Depends(database)]
) -> None:
    """The first step."""
    await db.save()
    order = event.body
    await emitter.emit(PaymentTaken(order=order.order, customer=order.customer))


@router.handler(PaymentTaken)
async def send_parcel(
    event: Event[PaymentTaken], db: Annotated[Database, Depends(database)]
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
