"""What `import dispytch` brings, and what it leaves until it is asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dispytch


def run(code: str, where: Path) -> None:
    """Run this in an interpreter that has imported nothing of ours yet."""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=where, env=os.environ)


def test_events_need_nothing_that_emits_or_handles(tmp_path: Path) -> None:
    """Declaring an event imports no emitter, no asyncio, no plugins, no client, no command line."""
    code = """
import sys
from pydantic import BaseModel
class Plain(BaseModel):
    n: int
before = set(sys.modules)
import dispytch
class Counted(dispytch.EventBase):
    __topic__ = "counted.{n}"
    __event_type__ = "counted"
    n: int
Counted(n=1)
new = set(sys.modules) - before
ours = {"config", "errors", "event", "roundtrip", "template"}
extra = {name for name in new if name.startswith("dispytch.")} - {f"dispytch.{n}" for n in ours}
late = {"asyncio", "pluggy", "importlib_metadata", "click", "rich", "pytest", "aiokafka",
        "aio_pika", "aiormq", "redis", "hiredis", "confluent_kafka"}
extra |= late & new
sys.exit(repr(extra) if extra else 0)
"""
    run(code, tmp_path)


def test_declaring_handlers_needs_nothing_that_runs_them(tmp_path: Path) -> None:
    """Routers and their handlers import no plugins, no URLs, nothing that works events off."""
    code = """
import asyncio, sys
from typing import Annotated
from pydantic import BaseModel
class Plain(BaseModel):
    n: int
before = set(sys.modules)
from dispytch import Depends, Event, EventBase, EventEmitter, EventListener, Router, TopicSegment
class Counted(EventBase):
    __topic__ = "counted.{n}"
    __event_type__ = "counted"
    n: int
router = Router()
def db() -> str:
    return "db"
@router.handler(Counted)
async def count(
    event: Event[Counted], n: Annotated[int, TopicSegment()], db: Annotated[str, Depends(db)]
) -> None:
    pass
new = set(sys.modules) - before
late = {f"dispytch.{name}" for name in ("plugins", "backend", "url", "hooks", "memory")}
late |= {f"dispytch.listener.{name}" for name in ("session", "dispatcher", "routing", "outcome")}
late |= {"pluggy", "importlib_metadata", "urllib.parse", "difflib", "click",
         "concurrent.futures.thread", "pydantic.functional_serializers"}
sys.exit(repr(late & new) if late & new else 0)
"""
    run(code, tmp_path)


def test_public_names_come_when_asked_for(tmp_path: Path) -> None:
    """Every public name is an attribute of the package, `plugins` included, with nothing before."""
    for name in dispytch.__all__:
        assert getattr(dispytch, name) is not None
        assert name in dir(dispytch)
    run("import dispytch; dispytch.plugins.get_backend", tmp_path)
    run("from dispytch import plugins; plugins.get_backend", tmp_path)
    run("from dispytch import *; EventEmitter, Backend, hookimpl, plugins", tmp_path)


def test_name_that_is_not_public_is_an_attribute_error() -> None:
    """A misspelt name fails as it does in any module."""
    with pytest.raises(AttributeError, match="'dispytch' has no attribute 'EventEmiter'"):
        _ = getattr(dispytch, "EventEmiter")  # noqa: B009 - type checkers know better
