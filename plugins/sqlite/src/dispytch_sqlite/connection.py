"""SQLiteConnection: what a URL becomes: `sqlite:///relative.db`, `sqlite:////absolute/path.db`."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, SecretStr, field_validator

from dispytch import Connection
from dispytch.fields import CENTURY

__all__ = ["SQLiteConnection"]

_MIB = 1024 * 1024


def _no_login(value: object) -> None:
    if value is not None:
        raise ValueError("a file has no user and no password")


class SQLiteConnection(Connection):
    """A file, and how it is used.

    All processes that use a file are on one machine. What concerns the file as a whole
    (`partitions`) is decided by the process that makes it.
    """

    user: Annotated[SecretStr | None, AfterValidator(_no_login)] = Field(
        default=None, description="none: a file has no user"
    )
    password: Annotated[SecretStr | None, AfterValidator(_no_login)] = Field(
        default=None, description="none: a file has no password"
    )
    path: str = Field(
        default="",
        validate_default=True,
        description="The file. sqlite:///events.db is relative to the working directory, "
        "sqlite:////var/lib/events.db absolute. It is made if it is not there; its directory "
        "must be.",
    )
    synchronous: Literal["full", "normal"] = Field(
        default="full",
        description="What a receipt means. full: the disk has the event, it survives a power cut. "
        "normal: the operating system has it, it survives the death of every process, but a power "
        "cut may take the last ones back. Default: full.",
    )
    begin: Literal["first", "latest"] | AwareDatetime = Field(
        default="first",
        description="Where a group begins that is new, or new to a topic: first, with the first "
        "event there is; latest, with the next one; or a time (2026-01-31T12:00:00Z), with the "
        "first event stored then or later. Default: first.",
    )
    partitions: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="For a file that is made: into how many partitions keys are spread, and so "
        "how many members of a group can work at once. Default: 32.",
    )
    lease: float = Field(
        default=5.0,
        ge=0.5,
        le=3600,
        allow_inf_nan=False,
        description="Seconds after which the others of a group take over what a process that died "
        "or stands still had. It is renewed three times as often. Default: 5.",
    )
    lock_timeout: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that an emit waits while another process writes; then it is rejected. "
        "Default: 10.",
    )
    poll_interval: float = Field(
        default=0.05,
        ge=0.001,
        le=10,
        allow_inf_nan=False,
        description="Seconds between two looks for events of other processes when there were none "
        "for a while; while there are some it looks each millisecond. Default: 0.05.",
    )
    max_event_bytes: int = Field(
        default=16 * _MIB,
        ge=1024,
        le=512 * _MIB,
        description="The largest event that is taken, in bytes. Default: 16 MiB.",
    )
    max_age: float | None = Field(
        default=None,
        gt=0,
        le=CENTURY,
        description="Seconds after which events are deleted, handled or not. Dead letters are "
        "kept. Default: events are kept for ever.",
    )
    max_bytes: int | None = Field(
        default=None,
        ge=_MIB,
        description="The size of the file above which the oldest events are deleted, handled or "
        "not. Dead letters are kept. Default: no limit.",
    )
    delete_handled: bool = Field(
        default=False,
        description="Whether events are deleted that every group of their topic has handled: no "
        "new group can begin with them. Events of topics without a group are kept. Default: false.",
    )

    @field_validator("hosts")
    @classmethod
    def _no_host(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if hosts:
            raise ValueError(
                "a file has no host; write three slashes for a relative path "
                "(sqlite:///events.db), four for an absolute one (sqlite:////var/lib/events.db)"
            )
        return hosts

    @field_validator("path")
    @classmethod
    def _names_a_file(cls, path: str) -> str:
        name = path[1:]
        if not name or name.endswith("/"):
            raise ValueError("names no file; for example sqlite:///events.db")
        if name.startswith(":memory:"):
            raise ValueError("SQLite in memory is no use to several processes; use memory://name")
        if "\0" in name:
            raise ValueError("holds a zero byte")
        if name.startswith("~"):
            raise ValueError("'~' is not replaced; write the whole path after sqlite:///")
        return path

    @property
    def file(self) -> Path:
        """The file's path, as the system takes it."""
        return Path(self.path[1:])

    def begins_at(self) -> Literal["first", "latest"] | int:
        """`begin`, a time as milliseconds since 1970 UTC."""
        begin: Any = self.begin
        return int(begin.timestamp() * 1000) if isinstance(begin, datetime) else begin
