"""What each error of redis-py means for the event that met it, and for who connects.

`redis.exceptions` has these classes. Many replies of the server come as a plain `ResponseError`
that begins with the reply's code; of the codes that redis-py knows, the class is left.
"""

import re
import ssl
from enum import Enum

from redis import exceptions

from dispytch import ConnectError, EmitError, EmitRejected, EmitUnknown

__all__ = [
    "BACKEND",
    "MEANINGS",
    "PUBSUB",
    "Meaning",
    "NotSentError",
    "WireError",
    "as_connect_error",
    "as_emit_error",
    "connect_problem",
    "described",
    "meaning_of",
    "without_login",
]

BACKEND = "redis"
PUBSUB = "redis+pubsub"


class WireError(Exception):
    """The connection ended before the reply: the command may have been executed."""


class NotSentError(WireError):
    """It ended before anything of the command was sent: it certainly was not executed."""

    def __init__(self) -> None:
        super().__init__("there is no connection")


class Meaning(Enum):
    """What an error tells."""

    REFUSED = "the server refused this command"
    BUSY = "the server refused this command for now"
    LOGIN_REFUSED = "the server does not let this client in"
    LOST = "the connection ended, or no reply came; the command may have been executed"
    INVALID = "the command can't be written"
    ELSEWHERE = "of parts of redis-py that this plugin does not use"


_BY_NAME = {
    "RedisError": Meaning.LOST,
    "ConnectionError": Meaning.LOST,
    "TimeoutError": Meaning.LOST,
    "InvalidResponse": Meaning.LOST,
    "ResponseError": Meaning.REFUSED,
    "ExecAbortError": Meaning.REFUSED,
    "ModuleError": Meaning.REFUSED,
    "NoPermissionError": Meaning.REFUSED,
    "NoScriptError": Meaning.REFUSED,
    "AskError": Meaning.REFUSED,
    "MovedError": Meaning.REFUSED,
    "ClusterCrossSlotError": Meaning.REFUSED,
    "BusyLoadingError": Meaning.BUSY,
    "ClusterDownError": Meaning.BUSY,
    "ExternalAuthProviderError": Meaning.BUSY,
    "MasterDownError": Meaning.BUSY,
    "OutOfMemoryError": Meaning.BUSY,
    "ReadOnlyError": Meaning.BUSY,
    "TryAgainError": Meaning.BUSY,
    "AuthenticationError": Meaning.LOGIN_REFUSED,
    "AuthenticationWrongNumberOfArgsError": Meaning.LOGIN_REFUSED,
    "AuthorizationError": Meaning.LOGIN_REFUSED,
    "DataError": Meaning.INVALID,
    "ChildDeadlockedError": Meaning.ELSEWHERE,
    "ClusterError": Meaning.ELSEWHERE,
    "CrossSlotTransactionError": Meaning.ELSEWHERE,
    "IncorrectPolicyType": Meaning.ELSEWHERE,
    "InvalidPipelineStack": Meaning.ELSEWHERE,
    "LockError": Meaning.ELSEWHERE,
    "LockNotOwnedError": Meaning.ELSEWHERE,
    "MaxConnectionsError": Meaning.ELSEWHERE,
    "NoSuchFieldsetError": Meaning.ELSEWHERE,
    "PubSubError": Meaning.ELSEWHERE,
    "RedisClusterException": Meaning.ELSEWHERE,
    "SlotNotCoveredError": Meaning.ELSEWHERE,
    "WatchError": Meaning.ELSEWHERE,
}
"""By name, as some are missing in older versions of redis-py."""

MEANINGS: dict[type[BaseException], Meaning] = {
    getattr(exceptions, name): meaning
    for name, meaning in _BY_NAME.items()
    if hasattr(exceptions, name)
} | {OSError: Meaning.LOST, TimeoutError: Meaning.LOST}
"""Every class of `redis.exceptions`, and what it lets through of the standard library."""

_FOR_NOW = frozenset({"BUSY", "MISCONF", "NOREPLICAS"})
"""Codes of plain replies that another attempt may not meet."""

_OF_A_CLUSTER = (
    exceptions.AskError,
    exceptions.ClusterCrossSlotError,
    exceptions.ClusterDownError,
)

_TOO_MANY = "max number of clients reached"  # a plain ConnectionError, but a reply

_ADVICE = {  # by what a text holds, when connecting
    "invalid username-password": "the server refused the user or the password",
    "Authentication required": "the server wants a login: put user:password@ before the host",
    "without any password configured": "the server has no password: leave it out of the URL",
    "DB index is out of range": "the server has no database of this number",
    "SELECT is not allowed in cluster": "it is a Redis Cluster, which is not supported",
    "CERTIFICATE_REQUIRED": "the server wants a client's certificate: see the option certfile",
}


def meaning_of(error: BaseException) -> Meaning | None:
    """What an error tells; None for one that redis-py does not raise."""
    text = str(error)
    if type(error) is exceptions.ResponseError and text.partition(" ")[0] in _FOR_NOW:
        return Meaning.BUSY
    if type(error) is exceptions.ConnectionError and text == _TOO_MANY:
        return Meaning.BUSY
    return next((MEANINGS[cls] for cls in type(error).__mro__ if cls in MEANINGS), None)


def described(error: BaseException, login: str | None = None) -> str:
    """An error in one line, without the user's name, and without what a command carried."""
    name = type(error).__name__
    if isinstance(error, exceptions.InvalidResponse):  # it holds what came instead
        return f"{name}: what came is not Redis' protocol"
    if isinstance(error, _OF_A_CLUSTER):
        return f"{name}: it is a Redis Cluster, which is not supported"
    text = " ".join(str(error).split())
    text = re.sub(r",? with args beginning with.*", "", text)
    if isinstance(error, WireError):
        return text
    text = _hidden(text, login) if login else text
    return f"{name}: {text}" if text else name


def _hidden(text: str, login: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(login)}(?!\w)", "***", text)


def without_login(error: Exception, login: str | None) -> Exception:
    """The same error, where need be without the user's name: some replies tell it."""
    if login and login in str(error):
        error.args = (_hidden(str(error), login),)
    return error


def as_emit_error(error: BaseException) -> EmitError:
    """The outcome of an event whose command was answered by an error, or not at all."""
    meaning, told = meaning_of(error), described(error)
    failure: EmitError
    if meaning in {Meaning.REFUSED, Meaning.LOGIN_REFUSED}:
        failure = EmitRejected(f"refused by the server: {told}")
    elif meaning is Meaning.BUSY:
        failure = EmitRejected(f"refused by the server for now: {told}", retriable=True)
    elif meaning is Meaning.INVALID:
        failure = EmitRejected(f"can't be written: {told}")
    else:
        failure = EmitUnknown(f"no reply, and none will come: {told}", retriable=True)
    failure.__cause__ = error
    return failure


def as_connect_error(error: BaseException, backend: str = BACKEND) -> ConnectError:
    """What to raise where the server refused something other than an event, or did not answer."""
    lasting = meaning_of(error) in {Meaning.REFUSED, Meaning.LOGIN_REFUSED, Meaning.INVALID}
    return ConnectError(f"{backend}: {described(error)}", backend=backend, retriable=not lasting)


def connect_problem(
    error: BaseException, login: str | None, *, tls: bool = False
) -> tuple[str, bool]:
    """Why a connection could not be opened, and whether trying again may help."""
    text, meaning = str(error), meaning_of(error)
    for part, advice in _ADVICE.items():
        if part in text:
            return advice, False
    if problem := _tls_problem(error):
        return problem, False
    if isinstance(error, exceptions.InvalidResponse):
        return "what answers there is not Redis", False
    if isinstance(error, exceptions.TimeoutError | TimeoutError):
        advice = "; if it has no TLS on this port, write redis for rediss in the URL"
        return f"no answer in time{advice if tls else ''}", True
    if any(part in text for part in ("closed by server", "while reading", "while writing")):
        wanted = "a client's certificate (certfile)" if tls else "TLS (rediss)"
        return f"the server hung up: it may want {wanted}, or have too many clients", True
    lasting = meaning in {Meaning.REFUSED, Meaning.LOGIN_REFUSED, Meaning.INVALID}
    return described(error, login), not lasting


def _tls_problem(error: BaseException) -> str | None:
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ssl.SSLCertVerificationError):
            told = link.verify_message.rstrip(".")
            return f"the server's certificate is refused: {told}; see the option cafile"
        if isinstance(link, ssl.SSLError) and not isinstance(link, ssl.SSLEOFError):
            return f"TLS failed: {link.reason}; does the server expect it on this port?"
        link = link.__cause__ or link.__context__
    return None
