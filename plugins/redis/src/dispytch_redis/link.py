"""Link: keeps a wire to the server, and opens another when it ends."""

import asyncio
import logging
import random
from collections.abc import Callable

from redis.exceptions import RedisError

from dispytch import ConnectError
from dispytch_redis.connection import RedisServer
from dispytch_redis.errors import WireError, as_connect_error
from dispytch_redis.opening import open_connection
from dispytch_redis.wire import Wire

__all__ = ["Link"]

logger = logging.getLogger("dispytch.redis")

_BRIEF = 0.5  # seconds: an attempt whose wire had ended by then failed, too


class Link:
    """Keeps a wire.

    Args:
        settings: where to, as whom, and how.
        backend: its name, for messages.
        blocking: seconds for which commands may block: a reply may take so much longer.
        lost: called when a wire ends.
        renewed: called when another is there.
    """

    def __init__(
        self,
        settings: RedisServer,
        backend: str,
        *,
        blocking: float = 0.0,
        lost: Callable[[], None] = lambda: None,
        renewed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._backend = settings, backend
        self._patience = settings.reply_timeout + blocking
        self._lost, self._renewed = lost, renewed
        self._wire: Wire | None = None
        self._usable = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self.problem: ConnectError | None = None

    @property
    def wire(self) -> Wire | None:
        """The wire to be used now; None: there is none."""
        wire = self._wire
        return None if wire is None or wire.ended.done() else wire

    @property
    def is_kept(self) -> bool:
        """Whether it was opened and not closed; here, and not in a loop or process before."""
        keeper = self._keeper
        return keeper is not None and keeper.get_loop() is asyncio.get_running_loop()

    async def open(self) -> None:
        """Connect for the first time.

        Raises:
            ConnectError: the server can't be reached, or refuses us.
        """
        self._keeper = self._wire = None  # of a loop or process before
        self._usable = asyncio.Event()
        self._wire = await self._connect()
        self._keeper = asyncio.create_task(self._keep(), name="dispytch-redis")

    async def connected(self) -> Wire | None:
        """The wire; waits for as long as there is none. None when the link was closed."""
        while self.is_kept:
            if (wire := self.wire) is not None:
                return wire
            self._usable.clear()
            await self._usable.wait()
        return None

    async def ping(self) -> None:
        """Ask the server for a sign of life.

        Raises:
            ConnectError: there is none.
        """
        if (wire := self.wire) is None:
            raise self.down()
        try:
            await wire.call("PING")
        except (RedisError, WireError) as error:
            raise as_connect_error(error, self._backend) from error

    async def close(self) -> None:
        """End the wire, and open no other."""
        keeper, self._keeper = self._keeper, None
        self._usable.set()
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,))
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def _connect(self) -> Wire:
        return Wire(await open_connection(self._settings, self._backend), self._patience)

    async def _keep(self) -> None:
        clock, pause = asyncio.get_running_loop().time, self._settings.reconnect_interval
        tried = clock()
        while True:
            if (wire := self._wire) is not None:
                why = await asyncio.shield(wire.ended)
                self._wire = None
                logger.warning("%s: the connection was lost: %s", self._backend, why)
                self.problem = self.down(why)
                self._lost()
                await wire.close()
            if wire is None or clock() - tried < min(pause, _BRIEF):
                await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            tried = clock()
            try:
                self._wire = await self._connect()
            except ConnectError as error:
                logger.warning("%s; trying again", error)
                self.problem = error
            except Exception as error:  # noqa: BLE001 - a bug must not end the reconnecting
                logger.error("%s: %s while connecting", self._backend, type(error).__name__)  # noqa: TRY400 - a traceback may hold the login
            else:
                logger.warning("%s: connected again", self._backend)
                self.problem = None
                self._usable.set()
                self._renewed()

    def down(self, why: str = "") -> ConnectError:
        """What to raise while there is no wire."""
        return self.problem or ConnectError(
            f"{self._backend}: there is no connection to {self._settings.host}:"
            f"{self._settings.port}{why and ': '}{why}",
            backend=self._backend,
        )
