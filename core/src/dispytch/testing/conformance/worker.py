"""A listener in a process of its own, for `Workers`. Run as a file: it must not import pytest.

It writes a line per handler that begins and one per handler that has ended, each in one piece, so
that a kill leaves none half written.
"""

import asyncio
import logging
import os
import sys
import time

from dispytch import Event, EventBase, EventListener

__all__ = ["main"]


def main(url: str, topic: str, log: str, *given: str) -> None:
    """Handle until SIGTERM."""
    options = dict(each.split("=") for each in given)
    out = os.open(log, os.O_WRONLY | os.O_APPEND)
    work, stuck = float(options.get("work", 0)), int(float(options.get("stuck", -1)))
    listener = EventListener.from_url(
        url,
        group=f"{topic}-workers",
        max_in_flight=int(float(options.get("max_in_flight", 100))),
        drain_timeout=float(options.get("drain_timeout", 30)),
    )

    class Numbered(EventBase):
        __topic__ = topic
        __event_type__ = "numbered"
        __key__ = "{lane}"

        lane: int
        number: int

    def write(what: str, event: Event[Numbered]) -> None:
        about = f"{event.body.lane} {event.body.number} {event.id}"
        os.write(out, f"{what} {time.monotonic()!r} {os.getpid()} {about}\n".encode())

    @listener.handler(Numbered)
    async def note(event: Event[Numbered]) -> None:
        write("begun", event)
        await asyncio.sleep(3600 if event.body.number == stuck else work)
        write("ended", event)

    async def run() -> None:
        await listener.start()
        os.write(sys.stdout.fileno(), b"subscribed\n")
        await listener.run()

    logging.basicConfig(level=logging.INFO)
    asyncio.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
