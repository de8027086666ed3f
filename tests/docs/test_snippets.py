"""Every python snippet of the documentation runs, each in a fresh interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from brokers.kafka_access import KafkaAccess
from brokers.rabbitmq_access import RabbitMQAccess
from brokers.redis_access import RedisAccess

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "core/README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _snippets() -> list[tuple[str, str]]:
    """Id and code of every block; one that begins with `# file:` is tested where it belongs."""
    return [
        (f"{page.relative_to(ROOT)}:{text[: match.start()].count(chr(10)) + 1}", match.group(1))
        for page in PAGES
        for text in [page.read_text()]
        for match in _BLOCK.finditer(text)
        if not match.group(1).startswith("# file:")
    ]


SNIPPETS = _snippets()


@pytest.fixture(scope="module")
def brokers(
    kafka_broker: KafkaAccess, rabbitmq_broker: RabbitMQAccess, redis_broker: RedisAccess
) -> dict[str, str]:
    """The environment of a snippet: addresses, behind which the topic `user_events` exists."""
    kafka_broker.create_topic("user_events")
    rabbitmq_broker.declare_queue("user_events")
    return {
        "KAFKA_URL": kafka_broker.url,
        "RABBITMQ_URL": rabbitmq_broker.url,
        "REDIS_URL": redis_broker.url,
    }


@pytest.mark.kafka
@pytest.mark.rabbitmq
@pytest.mark.redis
@pytest.mark.parametrize("code", [code for _, code in SNIPPETS], ids=[name for name, _ in SNIPPETS])
def test_snippet_runs(code: str, brokers: dict[str, str], tmp_path: Path) -> None:
    """A reader who copies a snippet sees it work; the brokers' addresses are those of the tests."""
    _run(code, brokers, tmp_path)


@pytest.mark.kafka
@pytest.mark.rabbitmq
@pytest.mark.redis
@pytest.mark.parametrize(
    "url",
    [
        "memory://demo",
        "kafka://localhost:9092",
        "kafka+confluent://localhost:9092",
        "amqp://guest:guest@localhost/",
        "redis://localhost:6379",
    ],
)
def test_first_example_needs_another_url_alone(
    url: str, brokers: dict[str, str], tmp_path: Path
) -> None:
    """The README's example emits and handles on every backend; only its URL is changed."""
    first = next(code for name, code in SNIPPETS if name.startswith("README.md"))
    assert "sqlite:///events.db" in first
    done = _run(first.replace("sqlite:///events.db", url), brokers, tmp_path)
    assert "welcome ada@example.com" in done


def _run(code: str, brokers: dict[str, str], folder: Path) -> str:
    code = code.replace("kafka://localhost:9092", brokers["KAFKA_URL"])
    ceiling = brokers["KAFKA_URL"].replace("kafka:", "kafka+confluent:")
    code = code.replace("kafka+confluent://localhost:9092", ceiling)
    code = code.replace("amqp://guest:guest@localhost/", brokers["RABBITMQ_URL"])
    code = code.replace("redis://localhost:6379", brokers["REDIS_URL"])
    environment = {**os.environ, **brokers, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout
