"""What each exception of the clients means for the event that met it.

`aio_pika`, `aiormq` and `pamqp` define these classes; what they leak of the standard library stands
below. An exception that is not here is a bug, and reaches the caller as it is.
"""

import asyncio
import ssl
import struct
from enum import Enum

from aio_pika import exceptions as pika
from aio_pika.patterns import master, rpc
from aio_pika.pool import PoolInvalidStateError
from aiormq import exceptions as aiormq
from pamqp import exceptions as pamqp

from dispytch import EmitRejected, EmitUnknown

__all__ = ["CLIENT_ERRORS", "MEANINGS", "Meaning", "describe", "emit_error", "meaning"]


class Meaning(Enum):
    """What an exception tells about a message that was being published."""

    REFUSED = "the broker told that it did not take this message"
    CHANNEL_REFUSED = "the broker refused one of the messages on this channel, and closed it"
    LOGIN_REFUSED = "the broker does not let this client in"
    LOST = "the connection or the channel ended; the message may have arrived before"
    INVALID = "the message can't be written"
    ELSEWHERE = "of parts of the clients that this plugin does not use"


MEANINGS: dict[type[BaseException], Meaning] = {
    aiormq.AMQPError: Meaning.LOST,
    aiormq.AMQPConnectionError: Meaning.LOST,
    aiormq.IncompatibleProtocolError: Meaning.LOGIN_REFUSED,
    aiormq.AuthenticationError: Meaning.LOGIN_REFUSED,
    aiormq.ProbableAuthenticationError: Meaning.LOGIN_REFUSED,
    aiormq.ConnectionClosed: Meaning.LOST,
    aiormq.ConnectionSyntaxError: Meaning.LOST,
    aiormq.ConnectionFrameError: Meaning.LOST,
    aiormq.ConnectionCommandInvalid: Meaning.LOST,
    aiormq.ConnectionChannelError: Meaning.LOST,
    aiormq.ConnectionUnexpectedFrame: Meaning.LOST,
    aiormq.ConnectionResourceError: Meaning.LOST,
    aiormq.ConnectionNotAllowed: Meaning.LOGIN_REFUSED,
    aiormq.ConnectionNotImplemented: Meaning.LOST,
    aiormq.ConnectionInternalError: Meaning.LOST,
    aiormq.AMQPChannelError: Meaning.LOST,
    aiormq.ChannelClosed: Meaning.LOST,
    aiormq.ChannelAccessRefused: Meaning.CHANNEL_REFUSED,
    aiormq.ChannelNotFoundEntity: Meaning.CHANNEL_REFUSED,
    aiormq.ChannelLockedResource: Meaning.CHANNEL_REFUSED,
    aiormq.ChannelPreconditionFailed: Meaning.CHANNEL_REFUSED,
    aiormq.ChannelInvalidStateError: Meaning.LOST,
    aiormq.ProtocolSyntaxError: Meaning.LOST,
    aiormq.InvalidFrameError: Meaning.LOST,
    aiormq.DeliveryError: Meaning.REFUSED,
    aiormq.PublishError: Meaning.REFUSED,
    aiormq.DuplicateConsumerTag: Meaning.ELSEWHERE,
    aiormq.MethodNotImplemented: Meaning.ELSEWHERE,
    pika.MessageProcessError: Meaning.ELSEWHERE,
    pika.QueueEmpty: Meaning.ELSEWHERE,
    master.MessageProcessingError: Meaning.ELSEWHERE,
    master.NackMessage: Meaning.ELSEWHERE,
    master.RejectMessage: Meaning.ELSEWHERE,
    rpc.RPCException: Meaning.ELSEWHERE,
    rpc.JsonRPCError: Meaning.ELSEWHERE,
    PoolInvalidStateError: Meaning.ELSEWHERE,
    # pamqp raises the first two; the others name reply codes, which aiormq raises as its own.
    pamqp.PAMQPException: Meaning.LOST,
    pamqp.UnmarshalingException: Meaning.LOST,
    pamqp.AMQPError: Meaning.LOST,
    pamqp.AMQPSoftError: Meaning.LOST,
    pamqp.AMQPHardError: Meaning.LOST,
    pamqp.AMQPContentTooLarge: Meaning.LOST,
    pamqp.AMQPNoRoute: Meaning.LOST,
    pamqp.AMQPNoConsumers: Meaning.LOST,
    pamqp.AMQPAccessRefused: Meaning.LOST,
    pamqp.AMQPNotFound: Meaning.LOST,
    pamqp.AMQPResourceLocked: Meaning.LOST,
    pamqp.AMQPPreconditionFailed: Meaning.LOST,
    pamqp.AMQPConnectionForced: Meaning.LOST,
    pamqp.AMQPInvalidPath: Meaning.LOST,
    pamqp.AMQPFrameError: Meaning.LOST,
    pamqp.AMQPSyntaxError: Meaning.LOST,
    pamqp.AMQPCommandInvalid: Meaning.LOST,
    pamqp.AMQPChannelError: Meaning.LOST,
    pamqp.AMQPUnexpectedFrame: Meaning.LOST,
    pamqp.AMQPResourceError: Meaning.LOST,
    pamqp.AMQPNotAllowed: Meaning.LOST,
    pamqp.AMQPNotImplemented: Meaning.LOST,
    pamqp.AMQPInternalError: Meaning.LOST,
    # The standard library, as the clients leak it.
    asyncio.CancelledError: Meaning.LOST,  # aiormq cancels what waits when it closes
    asyncio.InvalidStateError: Meaning.LOST,  # ... or finds its futures done already
    asyncio.TimeoutError: Meaning.LOST,
    EOFError: Meaning.LOST,
    StopAsyncIteration: Meaning.LOST,  # aiormq's reader at the end of the stream
    OSError: Meaning.LOST,
    ssl.SSLCertVerificationError: Meaning.LOGIN_REFUSED,
    RuntimeError: Meaning.LOST,  # "... closed", from transports and connections
    struct.error: Meaning.INVALID,
}

CLIENT_ERRORS: tuple[type[BaseException], ...] = tuple(
    cls for cls in MEANINGS if cls is not asyncio.CancelledError
)
"""All of them but a cancellation, which is ours as often as the client's."""


def meaning(error: BaseException) -> Meaning | None:
    """What an exception means; None for one that is none of the clients'."""
    return next((MEANINGS[cls] for cls in type(error).__mro__ if cls in MEANINGS), None)


def describe(error: BaseException, login: str) -> str:
    """An exception in one line, without the login, which brokers like to repeat."""
    if isinstance(error, aiormq.DeliveryError):
        return f"{error.frame.name} from the broker"
    text = str(error).replace(f"'{login}'", "'***'")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def emit_error(error: BaseException, *, alone: bool, login: str) -> BaseException:
    """What the caller of an emit gets for what publishing its message raised.

    Args:
        error: what the client raised.
        alone: whether nothing else was published on that channel.
        login: the user's name, which must not appear.
    """
    kind, told = meaning(error), describe(error, login)
    if kind is None:
        return error
    if kind is Meaning.REFUSED:
        return EmitRejected(f"not taken by the broker: {told}", retriable=True)
    if kind is Meaning.INVALID:
        return EmitRejected(f"can't be written: {told}")
    if kind is Meaning.CHANNEL_REFUSED and alone:
        return EmitRejected(f"refused by the broker: {told}")
    return EmitUnknown(f"no confirmation, and none will come: {told}", retriable=True)


def connect_problem(error: BaseException, login: str) -> tuple[str, bool]:
    """Why a connection could not be opened, and whether trying again may help."""
    if isinstance(error, aiormq.ProbableAuthenticationError | aiormq.AuthenticationError):
        return "the broker refused the user or the password", False
    if "Connection.OpenOk" in str(error):
        # aiormq does not tell the reason, with which the broker closed instead of opening.
        return "the broker refused the virtual host: it is missing, or closed to this user", False
    if isinstance(error, TimeoutError):
        return "no answer in time", True
    return describe(error, login), meaning(error) is not Meaning.LOGIN_REFUSED


def unroutable(exchange: str, routing_key: str) -> EmitRejected:
    """The outcome of a mandatory event that came back, as no queue receives it."""
    where = f"exchange {exchange!r}" if exchange else "the default exchange"
    return EmitRejected(
        f"unroutable: no queue of {where} receives the routing key {routing_key!r}; "
        "bind one, or set mandatory=False to let the broker drop such events"
    )
