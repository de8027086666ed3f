"""Connection: what a URL becomes. Nothing of a URL is ever repeated in a message."""

import re
from collections.abc import Iterable
from typing import Any, TypeVar, get_args
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, ConfigDict, Field, ImportString, SecretStr, ValidationError

from dispytch.config import explain
from dispytch.errors import ConfigError

__all__ = ["Connection", "connect", "scheme_of"]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?(#.*)?", re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%a-z]+\]|[^\s:\[\]]*)(?::(\d{1,5}))?")
_URL_PARTS = frozenset({"scheme", "user", "password", "hosts", "path"})
_C = TypeVar("_C", bound=BaseModel)


class Connection(BaseModel):
    """The base of a backend's connection: the parts of a URL; a subclass adds its options.

    Attributes:
        scheme: as written before `://`, in lower case.
        user: percent-decoded; a secret, because it often is a key.
        password: percent-decoded.
        hosts: `"host"` or `"host:port"`, in the order given; IPv6 addresses in brackets.
        path: percent-decoded, with its leading slash; empty if absent.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        defer_build=True,  # who brings a client of their own never reads a URL
    )

    scheme: str = Field(description="the URL's scheme, in lower case")
    user: SecretStr | None = Field(None, description="the URL's user, percent-decoded")
    password: SecretStr | None = Field(None, description="the URL's password, percent-decoded")
    hosts: tuple[str, ...] = Field((), description="the URL's hosts, each host or host:port")
    path: str = Field("", description="the URL's path, percent-decoded, with its leading slash")


def scheme_of(url: object) -> str:
    """The scheme of a URL, in lower case.

    Raises:
        ConfigError: it has none.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url if isinstance(url, str) else "")
    if match is None:
        raise ConfigError("not a URL: expected scheme://host, for example kafka://localhost:9092")
    return match.group(1).lower()


def connect(url: str, schema: type[_C]) -> _C:
    """Turn a URL into a backend's validated connection.

    Raises:
        ConfigError: naming the part or the option at fault, never its value.
    """
    parts, options = _split(url)
    allowed = {
        name
        for name, field in schema.model_fields.items()
        if name not in _URL_PARTS and not _names_code(field.annotation, field.metadata)
    }
    unknown = sorted(set(options) - allowed)
    if unknown:
        known = ", ".join(sorted(allowed)) or "none"
        raise ConfigError(
            f"{parts['scheme']}:// URL: unknown option {', '.join(map(_shown, unknown))}; "
            f"options: {known}"
        )
    message = ""
    try:
        return schema.model_validate({**parts, **options})
    except ValidationError as error:
        message = explain(error, f"{parts['scheme']}:// URL")
    raise ConfigError(message)  # outside the handler: the ValidationError holds the password


def _split(url: str) -> tuple[dict[str, Any], dict[str, str]]:
    scheme = scheme_of(url)
    match = _URL.fullmatch(url)
    if match is None or match.group(5):
        raise ConfigError(f"{scheme}:// URL: has a '#'; write it as %23 if it belongs to a part")
    _, authority, path, query, _ = match.groups()
    userinfo, _, hosts = authority.rpartition("@")
    if "@" in userinfo or "@" in f"{path}{query}":
        raise ConfigError(
            f"{scheme}:// URL: a part holds a reserved character; percent-encode it "
            "(@ is %40, / is %2F, : is %3A, # is %23, ? is %3F)"
        )
    user, colon, password = userinfo.partition(":")
    parts: dict[str, Any] = {"scheme": scheme, "hosts": _hosts(scheme, hosts), "path": ""}
    if user or colon:
        parts["user"] = SecretStr(unquote(user))
    if colon:
        parts["password"] = SecretStr(unquote(password))
    if path:
        parts["path"] = unquote(path)
    return parts, _options(scheme, query or "")


def _hosts(scheme: str, text: str) -> tuple[str, ...]:
    if not text:
        return ()
    hosts = text.split(",")
    for position, host in enumerate(hosts, start=1):
        match = _HOST.fullmatch(host)
        port = match and match.group(2)
        if match is None or not match.group(1) or (port and not 0 < int(port) < 65536):
            raise ConfigError(
                f"{scheme}:// URL: host {position} of {len(hosts)} is not host, host:port or "
                "[IPv6]:port, with a port from 1 to 65535; is a character of the user or "
                "password not percent-encoded?"
            )
    return tuple(unquote(host) for host in hosts)


def _options(scheme: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise ConfigError(f"{scheme}:// URL: option {_shown(name)} is given twice")
        options[name] = value
    return options


def _shown(name: str) -> str:
    """An option's name, where it looks like one: a password's remainder is not repeated."""
    return repr(name) if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,40}", name) else "(unreadable)"


def _names_code(annotation: Any, metadata: Iterable[Any] = ()) -> bool:
    """Whether text for this field, or for a part of it, would be imported as code."""
    annotation = getattr(annotation, "__value__", annotation)  # `type X = ...`
    return any(ImportString in (item, type(item)) for item in (annotation, *metadata)) or any(
        map(_names_code, get_args(annotation))
    )
