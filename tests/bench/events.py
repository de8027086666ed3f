"""The event that all contenders emit and handle: about 200 bytes on the wire, one of many keys.

Ours is an event class; the others have a plain model of the same fields, which becomes the same
bytes and is validated alike.
"""

import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypedDict

from dispytch import EventBase

KEYS = 50


class User(BaseModel):
    """The nested part."""

    id: str
    email: str
    name: str


class UserCreated(EventBase):
    """Ours."""

    __topic__ = "user_events"
    __event_type__ = "user_created"
    __key__ = "{user.id}"

    user: User
    timestamp: int


def on_topic(topic: str) -> type[UserCreated]:
    """The same on another topic."""

    class Elsewhere(UserCreated):
        __topic__ = topic

    return Elsewhere


class Body(BaseModel):
    """The others'."""

    user: User
    timestamp: int


@dataclass(slots=True)
class Plain:
    """The others' event."""

    id: str
    body: Body


class Envelope(TypedDict):
    """What travels, for pydantic alone."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["user_created"]
    body: Body
    timestamp: int


class Message(BaseModel):
    """The same as a model: what handlers of FastStream take."""

    id: Annotated[str, Field(min_length=1)]
    type: Literal["user_created"]
    body: Body
    timestamp: int


READ = TypeAdapter(Envelope).validator.validate_json

ADA = User(id="42", email="ada@example.com", name="Ada Lovelace")


def user(number: int) -> User:
    """One of `KEYS`."""
    return User(id=str(number % KEYS), email="ada@example.com", name="Ada Lovelace")


def created(number: int) -> UserCreated:
    """Ours."""
    return UserCreated(user=user(number), timestamp=number)


def plain(number: int) -> Plain:
    """The others'."""
    return Plain(str(uuid4()), Body(user=user(number), timestamp=number))


def message(event_id: str, body: Body) -> dict[str, Any]:
    """What travels, to be made bytes."""
    now = time.time_ns() // 10**6
    return {"id": event_id, "type": "user_created", "body": body, "timestamp": now}


def pack(event_id: str, body: Body) -> bytes:
    """The bytes, by pydantic alone."""
    now = time.time_ns() // 10**6
    return to_json({"id": event_id, "type": "user_created", "body": body, "timestamp": now})


def envelope(event: Plain) -> bytes:
    """The same of a ready event."""
    return pack(event.id, event.body)


def key_of(event: Plain) -> bytes:
    """Its key, as it travels."""
    return event.body.user.id.encode()


async def database() -> str:
    """An async dependency."""
    return "db"


def settings() -> str:
    """A sync dependency."""
    return "db"
