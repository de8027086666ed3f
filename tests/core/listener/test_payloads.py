"""Whatever comes: handled, dead-lettered or counted unmatched, and never lost."""

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dispytch import Event, EventBase, EventListener
from dispytch.listener import DEAD_LETTER_HEADERS
from dispytch.memory import MemoryConsumer
from dispytch.testing import TestListener

ENDS = ("handled", "dead-lettered", "unmatched")

EXAMPLES, BATCH, PER_KIND = 60, 8, 60
"""Examples, draws of each kind in one, and variations of each draw: well above 20,000 in all."""


class Item(BaseModel):
    name: str
    price: float = 0


class Order(EventBase):
    __topic__ = "orders"
    __event_type__ = "order"
    __key__ = "{order}"
    order: str
    items: list[Item] = Field(default_factory=list)
    more: dict[str, Any] = Field(default_factory=dict)


class Strict(EventBase, strict=True, extra="forbid"):
    __topic__ = "orders"
    __event_type__ = "strict"
    n: int


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text(st.characters(), max_size=20)  # lone surrogates included
)
FIELDS = ["id", "type", "body", "timestamp"]
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
kinds = st.sampled_from(["order", "strict", "unknown", "", "Order"])
bodies = st.fixed_dictionaries(
    {},
    optional={
        "order": st.text(max_size=8) | values,
        "items": st.lists(
            st.fixed_dictionaries({"name": st.text(max_size=5) | values}), max_size=3
        ),
        "more": values,
        "n": st.integers() | values,
        "id": values,
    },
)
envelopes = st.fixed_dictionaries(
    {
        "id": st.text(min_size=1, max_size=8),
        "type": kinds,
        "body": bodies,
        "timestamp": st.integers(),
    }
)
good = st.fixed_dictionaries(
    {
        "id": st.uuids().map(str),
        "type": st.just("order"),
        "body": st.fixed_dictionaries({"order": st.text(st.characters(codec="utf-8"))}),
        "timestamp": st.integers(0, 2**60),
    }
)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def almost(envelope: dict[str, Any], key: str, value: Any, drop: bool) -> bytes:
    """An envelope with one key gone, or with something else under it."""
    changed = {k: v for k, v in envelope.items() if k != key}
    return dumped(changed if drop else changed | {key: value})


def broken(payload: bytes, at: int, mark: int) -> bytes:
    """An envelope with one byte changed, or cut off."""
    at %= len(payload)
    return payload[:at] if mark > 255 else payload[:at] + bytes([mark]) + payload[at + 1 :]


def nested(depth: int, opening: str, inside: bool) -> bytes:
    closing = {"[": "]", '{"a":': "}"}[opening]
    deep = opening * depth + "1" + closing * depth
    body = f'{{"order":"o","more":{{"x":{deep}}}}}'
    return (
        f'{{"id":"1","type":"order","body":{body},"timestamp":1}}'.encode()
        if inside
        else deep.encode()
    )


KINDS: dict[str, st.SearchStrategy[bytes]] = {
    "bytes": st.binary(max_size=60),
    "json": values.map(dumped),
    "envelope": envelopes.map(dumped),
    "good": good.map(dumped),
    "almost": st.builds(
        almost, envelopes, st.sampled_from(FIELDS), values, st.booleans()
    ),
    "broken": st.builds(broken, envelopes.map(dumped), st.integers(0, 10**6), st.integers(0, 300)),
    "nested": st.builds(
        nested, st.integers(1, 3000), st.sampled_from(["[", '{"a":']), st.booleans()
    ),
    "surrogate": st.builds(
        lambda text, key: (
            f'{{"id":"{text}","type":"order","body":{{"order":"{key}"}},"timestamp":1}}'.encode(
                "utf-8", "surrogatepass"
            )
        ),
        st.sampled_from(["\ud800", "\\ud800", "\\udfff\\ud800", "ok", "\x00", "\\u0000"]),
        st.text(st.characters(exclude_characters='"\\'), max_size=6),
    ),
    "number": st.builds(
        lambda text, number: b'{"id":"1","type":"strict","body":{"n":%b%d},"timestamp":1}'
        % (text, number),
        st.sampled_from([b"", b"-", b"NaN,\"x\":", b"1e", b"1e99999", b"Infinity,\"x\":-"]),
        st.integers(0, 10**30),
    ),
    "huge": st.builds(
        lambda size, kind: dumped(
            {"id": "1", "type": kind, "body": {"order": "x" * size}, "timestamp": 1}
        ),
        st.integers(10_000, 200_000),
        kinds,
    ),
}  # fmt: skip


def varied(payload: bytes, chance: random.Random, number: int) -> list[bytes]:
    """The payload and some of its neighbours: bytes changed, cut, doubled, moved."""
    found = [payload]
    while payload and len(found) < number:
        at, to = sorted(chance.randrange(len(payload) + 1) for _ in range(2))
        found.append(
            chance.choice(
                [
                    payload[:at] + chance.randbytes(2) + payload[to:],
                    payload[:at] + payload[to:],
                    payload[:to] + payload[at:],
                    payload[:at] + bytes([chance.choice(b'"{}[],:\\0n ')]) + payload[at:],
                    payload.replace(b'"order"', b'"order%d"' % chance.randrange(10**6), 1),
                    payload.replace(b"1", b"%d" % chance.randrange(10**9), 1),
                ]
            )
        )
    return found


def make(handled: list[str]) -> EventListener:
    ours = EventListener(MemoryConsumer())

    @ours.handler(Order)
    async def order(event: Event[Order]) -> None:
        assert event.body.id == event.id
        handled.append(event.headers[0][1].decode())

    @ours.handler(Strict)
    async def strict(event: Event[Strict]) -> None:
        handled.append(event.headers[0][1].decode())

    return ours


async def deliver(payloads: dict[bytes, str]) -> Counter[tuple[str, str]]:
    """What became of each, by kind; every single one must be accounted for."""
    handled: list[str] = []
    found: Counter[tuple[str, str]] = Counter()
    async with TestListener(make(handled)) as t:
        for number, (payload, _) in enumerate(payloads.items()):
            await t.send("orders", payload, key=f"k{number % 7}", headers={"n": str(number)})
        await t.settled(60)
        letters = {int(letter.headers["n"]): letter for letter in t.dead_letters}
        counts = t.health.counts
        assert t.health
    assert counts.failed == counts.unsettled == counts.dropped == 0
    assert counts.dead_lettered == len(letters)
    assert counts.handled == len(handled) == len(set(handled))  # each once
    done = set(handled)
    assert letters.keys().isdisjoint(map(int, done))
    assert counts.handled + counts.dead_lettered + counts.unmatched == len(payloads)
    for number, (payload, kind) in enumerate(payloads.items()):
        if number in letters:
            assert letters[number].payload == payload
            assert letters[number].headers[DEAD_LETTER_HEADERS + "reason"]
            found[kind, "dead-lettered"] += 1
        else:
            found[kind, "handled" if str(number) in done else "unmatched"] += 1
    return found


def test_no_payload_is_lost(
    record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """20,000 and more distinct payloads: none crashes the listener, none is lost, all accounted."""
    seen: set[bytes] = set()
    found: Counter[tuple[str, str]] = Counter()

    @seed(20)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.fixed_dictionaries(
            {name: st.lists(made, max_size=BATCH) for name, made in KINDS.items()}
        )
    )
    def deliver_all(batch: dict[str, list[bytes]]) -> None:
        chance = random.Random(len(seen))
        payloads: dict[bytes, str] = {}
        for name, drawn in batch.items():
            few = 3 if name in {"huge", "nested"} else PER_KIND // BATCH * 4
            for payload in drawn:
                payloads |= {
                    each: name for each in varied(payload, chance, few) if each not in seen
                }
        seen.update(payloads)
        found.update(asyncio.run(deliver(payloads)))

    deliver_all()
    lines = [f"{len(seen)} distinct payloads", f"{'':<12}" + "".join(f"{e:>15}" for e in ENDS)]
    lines += [
        f"  {name:<10}" + "".join(f"{found[name, end]:>15}" for end in ENDS) for name in KINDS
    ]
    record_property("payloads", "\n".join(lines))
    with capsys.disabled():
        print("\n" + "\n".join(lines))  # noqa: T201 - so that CI shows what was tried
    assert len(seen) >= 20_000
    for end in ENDS:
        assert sum(found[name, end] for name in KINDS) > 1_000


async def test_nan_is_handled_as_json_readers_do() -> None:
    """NaN and infinity, no JSON though many write them, reach a float field; none is lost."""
    prices: list[float] = []
    ours = EventListener(MemoryConsumer())

    @ours.handler(Order)
    async def handle(event: Order) -> None:
        prices.append(event.items[0].price)

    async with TestListener(ours) as t:
        for price in (b"NaN", b"-Infinity", b"1e999"):
            body = b'{"order":"o","items":[{"name":"n","price":%b}]}' % price
            payload = b'{"id":"1","type":"order","body":%b,"timestamp":1}' % body
            await t.send("orders", payload)
        await t.settled()
        assert not t.dead_letters
    assert not any(math.isfinite(price) for price in prices)
    assert len(prices) == 3
