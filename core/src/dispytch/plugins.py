"""Discovery, lookup and registration of backends.

Entry points are read with `importlib_metadata` and cached; only the plugin asked for is
imported and registered with pluggy. One broken plugin never disturbs a healthy one.
"""

import importlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from dispytch.backend import PLUGIN_API, Backend
from dispytch.errors import (
    BackendLoadError,
    BackendNotFoundError,
    DuplicateBackendError,
    IncompatiblePluginError,
    PluginError,
)
from dispytch.url import scheme_of

if TYPE_CHECKING:
    import pluggy
    from importlib_metadata import EntryPoint

__all__ = [
    "BackendInfo",
    "announce",
    "backend_for_url",
    "backends",
    "connection_schema",
    "event_config",
    "get_backend",
    "refresh",
    "register",
    "unregister",
]

logger = logging.getLogger("dispytch")

BACKENDS = "dispytch.backends"
SCHEMES = "dispytch.schemes"
HOOKS = "dispytch.hooks"

_OURS = {  # scheme or name -> extra of the core that installs it
    "kafka": "kafka",
    "kafka+ssl": "kafka",
    "kafka+confluent": "confluent",
    "kafka+confluent+ssl": "confluent",
    "rabbitmq": "rabbitmq",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "redis+pubsub": "redis",
    "rediss+pubsub": "redis",
    "sqlite": "sqlite",
}


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """An installed backend.

    Attributes:
        name: what `get_backend` takes.
        distribution: the distribution that offers it; empty where it was registered by code.
        version: that distribution's version.
        schemes: the URL schemes it serves, sorted.
        error: with `backends(check=True)`, why it can't be loaded; else None.
    """

    name: str
    distribution: str
    version: str
    schemes: tuple[str, ...]
    error: PluginError | None = None


class _Entry:
    """One entry point, with what is needed to speak of it.

    What stands behind the module's name (`module:attribute`) tells backends of one module apart.
    """

    def __init__(self, point: "EntryPoint") -> None:
        self.name = point.name
        self.value = "".join(point.value.split())
        self.module = self.value.partition(":")[0]
        self.distribution, self.version = _identity(point.dist)

    def __str__(self) -> str:
        return f"{self.distribution or 'an unknown distribution'} {self.version}".strip()


def _identity(dist: Any) -> tuple[str, str]:
    """Name and version of a distribution, as far as its metadata tells."""
    try:
        return str(dist.name), str(dist.version)
    except Exception:  # noqa: BLE001 - metadata left behind fails differently in every version
        return "", ""


_registered: dict[str, Backend] = {}  # by code
_loaded: dict[str, list[Backend]] = {}  # by module
_managers: dict[str, "pluggy.PluginManager"] = {}


def backends(check: bool = False) -> list[BackendInfo]:  # noqa: FBT001, FBT002 - a public signature
    """Every installed backend, by name. Imports none of them unless `check`.

    Args:
        check: load each one and report in `BackendInfo.error` why it can't be; never raises.
    """
    infos = [
        BackendInfo(backend.name, "", "", tuple(sorted({backend.name, *backend.schemes})))
        for backend in _registered.values()
    ]
    for name, entries in _scan(BACKENDS).items():
        if name in _registered:
            continue
        for entry in entries:
            error = _error_of(name) if check else None
            schemes = _schemes_of(entry)
            infos.append(BackendInfo(name, entry.distribution, entry.version, schemes, error))
    return sorted(infos, key=lambda info: (info.name, info.distribution))


def _schemes_of(entry: _Entry) -> tuple[str, ...]:
    return tuple(
        sorted(
            scheme
            for scheme, offers in _scan(SCHEMES).items()
            for offer in offers
            if (offer.value, offer.distribution) == (entry.value, entry.distribution)
        )
    )


def _error_of(name: str) -> PluginError | None:
    try:
        get_backend(name).load_producer()
    except PluginError as error:
        return error
    return None


def get_backend(name: str) -> Backend:
    """The backend of this name. Imports its plugin, but never its broker's client.

    Raises:
        BackendNotFoundError: nothing installed offers it.
        DuplicateBackendError: two distributions offer it.
        BackendLoadError: its plugin can't be imported or describes no such backend.
        IncompatiblePluginError: it was written for another plugin API.
    """
    if name in _registered:
        return _registered[name]
    entry = _only(BACKENDS, name, "backend")
    found = _load(entry)
    for backend in found:
        if backend.name == name:
            return backend
    names = ", ".join(repr(backend.name) for backend in found)
    raise _broken(entry, f"describes no backend named {name!r}, but {names}")


def backend_for_url(url: str) -> Backend:
    """The backend that serves the scheme of this URL.

    Raises:
        ConfigError: it is no URL.
        PluginError: as for `get_backend`.
    """
    scheme = scheme_of(url)
    for backend in _registered.values():
        if scheme == backend.name or scheme in backend.schemes:
            return backend
    entry = _only(SCHEMES, scheme, "URL scheme")
    found = _load(entry)
    named = [backend for backend in found if scheme == backend.name or scheme in backend.schemes]
    if not named and len(found) > 1:
        raise _broken(entry, f"describes several backends, none of which names {scheme!r}")
    return (named or found)[0]


def event_config(name: str) -> type[BaseModel] | None:
    """The schema of the event configs of a backend; None where it takes any.

    Raises:
        PluginError: as for `get_backend`.
    """
    return get_backend(name).event_config


def connection_schema(name: str) -> type[BaseModel] | None:
    """The schema of the URLs of a backend; None where it takes none.

    Raises:
        PluginError: as for `get_backend`.
    """
    return get_backend(name).connection


def register(backend: Backend) -> None:
    """Register a backend by code: for frozen applications, which lose metadata, and for tests.

    It hides an installed one of its name.

    Raises:
        DuplicateBackendError: one of its name is registered by code already.
        IncompatiblePluginError: it was written for another plugin API.
    """
    if backend.name in _registered:
        raise DuplicateBackendError(
            f"backend {backend.name!r} is registered already; unregister it first",
            name=backend.name,
        )
    _check_api(backend, "registered by code")
    _registered[backend.name] = backend


def unregister(name: str) -> None:
    """Take back a `register`.

    Raises:
        BackendNotFoundError: none of this name was registered by code.
    """
    if _registered.pop(name, None) is None:
        raise BackendNotFoundError(
            f"backend {name!r} was not registered by code", name=name, installed=sorted(_registered)
        )


def refresh() -> None:
    """Forget the scan of installed plugins: the next look-up sees what was installed since."""
    importlib.invalidate_caches()
    _scan.cache_clear()
    _loaded.clear()
    _managers.clear()


def announce(hook: str, **arguments: Any) -> None:
    """Tell the packages of the group `dispytch.hooks`; one that fails is logged, no more."""
    if HOOKS not in _managers:
        _managers[HOOKS] = _manager(_healthy_observers())
    for implementation in getattr(_managers[HOOKS].hook, hook).get_hookimpls():
        try:
            implementation.function(*(arguments[name] for name in implementation.argnames))
        except Exception:
            logger.exception("%s of %s failed", hook, implementation.plugin_name)


@cache
def _scan(group: str) -> dict[str, list[_Entry]]:
    """The entry points of a group by name; what `DISPYTCH_PLUGINS` does not allow is left out."""
    from importlib_metadata import entry_points  # noqa: PLC0415 - 10 ms nobody without plugins pays

    found: dict[str, list[_Entry]] = {}
    for point in entry_points(group=group):
        entry = _Entry(point)
        if _allowed(entry, group):
            found.setdefault(entry.name, []).append(entry)
    return found


def _allowed(entry: _Entry, group: str) -> bool:
    allowed = os.environ.get("DISPYTCH_PLUGINS")
    if allowed is None or entry.distribution == "dispytch":
        return True
    names = {name.strip() for name in allowed.split(",")}
    if group != SCHEMES:
        return entry.name in names
    values = {offer.value for offers in _scan(BACKENDS).values() for offer in offers}
    return entry.value in values


def _only(group: str, name: str, kind: str) -> _Entry:
    scan = _scan(group)
    entries = scan.get(name, [])
    if len(entries) > 1:
        raise DuplicateBackendError(
            f"{kind} {name!r} is offered by {' and by '.join(map(str, entries))}; "
            "uninstall one of them",
            name=name,
        )
    if not entries:
        raise _not_found(kind, name, sorted({*scan, *_registered}))
    return entries[0]


def _not_found(kind: str, name: str, installed: list[str]) -> BackendNotFoundError:
    if kind == "URL scheme" and (offers := _scan(BACKENDS).get(name)):
        schemes = ", ".join(f"{scheme}://" for scheme in _schemes_of(offers[0])) or "none"
        advice = f"the backend of that name is installed, and its schemes are: {schemes}"
    elif name in _OURS:
        advice = f"pip install dispytch-{_OURS[name]}"
    elif near := get_close_matches(name, {*installed, *_OURS}, n=1):
        advice = f"did you mean {near[0]!r}?"
        if near[0] not in installed:
            advice += f" (pip install dispytch-{_OURS[near[0]]})"
    else:
        advice = "install the package that offers it"
    if os.environ.get("DISPYTCH_PLUGINS") is not None:
        advice += "; note that DISPYTCH_PLUGINS limits what is loaded"
    return BackendNotFoundError(
        f"no {kind} {name!r}: installed are {', '.join(installed)}; {advice}",
        name=name,
        installed=installed,
    )


def _load(entry: _Entry) -> list[Backend]:
    if entry.module not in _loaded:
        try:
            module = importlib.import_module(entry.module)
            manager = _manager([(entry.name, module)])
            manager.check_pending()
            described: Any = manager.hook.dispytch_backend()
        except (Exception, SystemExit) as error:
            raise _broken(entry, f"failed: {type(error).__name__}: {error}") from error
        _loaded[entry.module] = _described(entry, described)
    return _loaded[entry.module]


def _described(entry: _Entry, described: Any) -> list[Backend]:
    if described is None:
        raise _broken(entry, "has no @hookimpl function dispytch_backend that returns a Backend")
    members: list[Any] = described if isinstance(described, list) else [described]
    if not members:
        raise _broken(entry, "describes no backend: its list is empty")
    for member in members:
        if not isinstance(member, Backend):
            raise _broken(
                entry, f"describes its backend by a {type(member).__name__}; expected Backend"
            )
        _check_api(member, str(entry))
    origin = f"plugin {entry.name!r} ({entry.module}, from {entry})"
    return [
        replace(member, origin=origin, distribution=entry.distribution or None)
        for member in members
    ]


def _check_api(backend: Backend, origin: str) -> None:
    if backend.api != PLUGIN_API:
        api: Any = backend.api  # what a plugin gives is not checked by anybody else
        newer = isinstance(api, int) and api > PLUGIN_API
        older = "dispytch" if newer else "the plugin"
        raise IncompatiblePluginError(
            f"backend {backend.name!r} ({origin}) was written for plugin API {backend.api!r}, this "
            f"dispytch has {PLUGIN_API}; upgrade {older}",
            name=backend.name,
        )


def _broken(entry: _Entry, problem: str) -> BackendLoadError:
    return BackendLoadError(
        f"plugin {entry.name!r} ({entry.module}, from {entry}) {problem}",
        name=entry.name,
        distribution=entry.distribution or None,
    )


def _manager(plugins: Iterable[tuple[str, object]]) -> "pluggy.PluginManager":
    import pluggy  # noqa: PLC0415 - nobody without plugins pays for it

    from dispytch import hooks  # noqa: PLC0415 - it imports pluggy

    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    for name, plugin in plugins:
        manager.register(plugin, name)
    return manager


def _healthy_observers() -> list[tuple[str, object]]:
    healthy: list[tuple[str, object]] = []
    seen: set[str] = set()
    for name, entries in _scan(HOOKS).items():
        for entry in entries:
            if entry.module in seen:
                continue  # under two names it is still told once
            seen.add(entry.module)
            try:
                module = importlib.import_module(entry.module)
                _manager([(name, module)]).check_pending()
            except (Exception, SystemExit):
                logger.exception("observer plugin %r (from %s) left out", name, entry)
            else:
                healthy.append((f"{name} ({entry})", module))
    return healthy
