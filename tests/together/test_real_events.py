"""Real payloads through `dispytch emit` to each broker, read back by the bare clients."""

import asyncio
import gzip
import json
import os
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from brokers.java import java_partitions
from brokers.kafka_access import KafkaAccess
from brokers.rabbitmq_access import RabbitMQAccess
from brokers.redis_access import RedisAccess

PARTITIONS = 7
KAFKA_CONFIG = {
    "partition_key": "{event}",
    "headers": {"file": "{file}", "literal": "{{braces}}"},
    "timestamp_ms": 1_700_000_000_123,
}
RABBITMQ_CONFIG = {
    "headers": {"file": "{file}", "depth": 3},
    "priority": 4,
    "delivery_mode": 2,
    "correlation_id": "{event}",
    "app_id": "webhooks",
    "expiration": 3600,
}

REDIS_CONFIG = {
    "partition_key": "{event}",
    "headers": {"file": "{file}", "literal": "{{braces}}"},
    "ttl": 3600,
}
SHARDS = 5


def _events() -> list[dict[str, Any]]:
    """The payloads in the file that DISPYTCH_TEST_EVENTS names, or as many made ones."""
    source = os.environ.get("DISPYTCH_TEST_EVENTS")
    if source and Path(source).exists():
        with gzip.open(source, "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    dice = random.Random(5)
    return [
        {"event": f"event_{n % 50}", "file": f"{n}.payload.json", "payload": _payload(dice, 4)}
        for n in range(110)
    ]


def _payload(dice: random.Random, depth: int) -> Any:
    leaves = [dice.getrandbits(70), dice.random(), None, True, 'Zoë \u2028 " \\ 漢字 🎈', "x" * 500]
    if depth == 0:
        return dice.choice(leaves)
    return {
        "id": dice.getrandbits(40),
        "list": [_payload(dice, depth - 1) for _ in range(3)],
        **{f"key {n}": _payload(dice, depth - 1) for n in range(dice.randint(1, 4))},
    }


EVENTS = _events()


@pytest.fixture(scope="module")
def ndjson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("events") / "events.ndjson"
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS), encoding="utf-8")
    return path


def _emit(url: str, topic: str, config: dict[str, Any], source: Path) -> str:
    done = subprocess.run(
        [
            sys.executable, "-m", "dispytch", "emit", url, "--topic", topic,
            "--type", "github.{event}", "--config", json.dumps(config), str(source),
        ],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _check_envelope(payload: bytes, event: dict[str, Any]) -> str:
    envelope = json.loads(payload)
    assert list(envelope) == ["id", "type", "body", "timestamp"]
    assert envelope["body"] == event
    assert envelope["type"] == f"github.{event['event']}"
    return str(envelope["id"])


@pytest.mark.kafka
async def test_real_events_reach_kafka_as_configured(
    kafka_broker: KafkaAccess, unique_name: str, ndjson: Path
) -> None:
    """Bodies equal, keys and headers as configured, each key where Java's partitioner puts it."""
    await asyncio.to_thread(kafka_broker.create_topic, unique_name, PARTITIONS)
    summary = await asyncio.to_thread(_emit, kafka_broker.url, unique_name, KAFKA_CONFIG, ndjson)
    assert f"{len(EVENTS)} accepted" in summary
    records = await asyncio.to_thread(kafka_broker.read_all, unique_name, len(EVENTS))
    assert len(records) == len(EVENTS)
    by_name = {(e["event"], e["file"]): e for e in EVENTS}
    keys = sorted({record.key for record in records if record.key})
    chosen = await asyncio.to_thread(java_partitions, keys, PARTITIONS)
    partitions = dict(zip(keys, chosen, strict=True))
    ids = set()
    for record in records:
        assert record.key is not None
        headers = dict(record.headers)
        file = headers["file"]
        assert file is not None
        ids.add(_check_envelope(record.value, by_name[record.key.decode(), file.decode()]))
        assert headers["literal"] == b"{braces}"
        assert record.timestamp == 1_700_000_000_123
        assert record.partition == partitions[record.key]
    assert len(ids) == len(EVENTS)


@pytest.mark.rabbitmq
async def test_real_events_reach_rabbitmq_as_configured(
    rabbitmq_broker: RabbitMQAccess, unique_name: str, ndjson: Path
) -> None:
    """Bodies equal, and every AMQP property as configured."""
    await asyncio.to_thread(rabbitmq_broker.declare_queue, unique_name)
    url = rabbitmq_broker.url
    summary = await asyncio.to_thread(_emit, url, unique_name, RABBITMQ_CONFIG, ndjson)
    assert f"{len(EVENTS)} accepted" in summary
    deliveries = await asyncio.to_thread(rabbitmq_broker.read_queue, unique_name, len(EVENTS))
    assert len(deliveries) == len(EVENTS)
    by_name = {(e["event"], e["file"]): e for e in EVENTS}
    for delivery in deliveries:
        properties, headers = delivery.properties, delivery.headers
        event = by_name[properties["correlation_id"], headers["file"]]
        assert _check_envelope(delivery.body, event) == properties["message_id"]
        assert headers["depth"] == 3
        assert properties["priority"] == 4
        assert properties["delivery_mode"] == 2
        assert properties["app_id"] == "webhooks"
        assert properties["expiration"] == "3600000"
        assert delivery.routing_key == unique_name


@pytest.mark.redis
async def test_real_events_reach_redis_as_configured(
    redis_broker: RedisAccess, unique_name: str, ndjson: Path
) -> None:
    """Bodies equal, keys and headers as configured, each key in the stream of its checksum."""
    url = f"{redis_broker.url}?shards={SHARDS}"
    summary = await asyncio.to_thread(_emit, url, unique_name, REDIS_CONFIG, ndjson)
    assert f"{len(EVENTS)} accepted" in summary
    by_name = {(e["event"], e["file"]): e for e in EVENTS}
    ids = set()
    for shard in range(SHARDS):
        for entry in redis_broker.entries(f"dispytch:stream:{unique_name}:{shard}"):
            key, file = entry.fields[b"key"], entry.fields[b"header:file"]
            assert zlib.crc32(key) % SHARDS == shard
            ids.add(_check_envelope(entry.fields[b"payload"], by_name[key.decode(), file.decode()]))
            assert entry.fields[b"header:literal"] == b"{braces}"
            assert 3500 < int(entry.fields[b"expires_ms"]) / 1000 - time.time() <= 3600
    assert len(ids) == len(EVENTS)
