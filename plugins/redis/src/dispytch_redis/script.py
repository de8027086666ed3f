"""The Lua scripts that the server runs: each does in one step what must not be done by halves."""

import hashlib
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from dispytch_redis.wire import Argument, Wire

__all__ = [
    "APPEND",
    "BALANCE",
    "BEGIN",
    "CLAIM",
    "DONE",
    "DUE",
    "ENDS",
    "FOLLOW",
    "LATER",
    "LEAVE",
    "READ",
    "REGISTER",
    "RELEASE",
    "TRIM",
    "Script",
]


class Script:
    """A script of the folder `lua`.

    Args:
        name: of its file.
    """

    def __init__(self, name: str) -> None:
        self._source = (files("dispytch_redis") / "lua" / f"{name}.lua").read_bytes()
        # The server's name for it; not for security.
        self._sha = hashlib.sha1(self._source, usedforsecurity=False).hexdigest()

    async def run(self, wire: Wire, keys: list[str], *arguments: Argument) -> Any:
        """Run it.

        Raises:
            redis.exceptions.RedisError, WireError: see `Wire.call`.
        """
        try:
            return await wire.call("EVALSHA", self._sha, len(keys), *keys, *arguments)
        except NoScriptError:  # the server has been started since, and has learnt it after this
            return await wire.call("EVAL", self._source, len(keys), *keys, *arguments)


APPEND, BALANCE, BEGIN = Script("append"), Script("balance"), Script("begin")
CLAIM, DONE, DUE = Script("claim"), Script("done"), Script("due")
ENDS, FOLLOW, LATER = Script("ends"), Script("follow"), Script("later")
LEAVE, READ, REGISTER = Script("leave"), Script("read"), Script("register")
RELEASE, TRIM = Script("release"), Script("trim")
