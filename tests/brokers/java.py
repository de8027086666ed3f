"""Apache Kafka's jars, fetched once with Maven and kept in a cache, and how to run them.

`python -m brokers.java` (with `tests` on the path) fills the cache.
"""

import base64
import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from brokers.errors import BrokerError, BrokerMissing

KAFKA = "3.9.2"
SLF4J = "1.7.36"  # the one this Kafka was compiled with
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>dispytch</groupId>
  <artifactId>test-brokers</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{KAFKA}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-reload4j</artifactId>
      <version>{SLF4J}</version>
    </dependency>
  </dependencies>
</project>
"""
# A test broker lives for seconds: quick start matters, peak speed doesn't.
_QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


def jars() -> Path:
    """The directory with Kafka and all it needs, filled first where that has not been done yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dispytch-brokers"
    target = cache / f"kafka-{KAFKA}"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / "lock"):
            if not target.is_dir():
                _fetch(target)
    return target


def java(*arguments: str | Path, heap: str = "256m") -> list[str]:
    """The command that runs Java with Kafka's jars."""
    program = shutil.which("java")
    if program is None:
        raise BrokerMissing("no `java` on the PATH (Kafka needs version 17)")
    command = [program, f"-Xmx{heap}", *_QUICK_START, "-cp", f"{jars()}/*"]
    return command + [str(argument) for argument in arguments]


def run_java(*arguments: str | Path, stdin: str = "") -> str:
    """Run one of Kafka's tools to its end and return what it printed."""
    done = subprocess.run(
        java(*arguments), input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise BrokerError(f"{arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def java_partitions(keys: Sequence[bytes], partitions: int) -> list[int]:
    """Where Java's own default partitioner puts each key."""
    source = Path(__file__).with_name("Partitions.java")
    lines = [base64.b64encode(key).decode() + "\n" for key in keys]
    return [int(line) for line in run_java(source, str(partitions), stdin="".join(lines)).split()]


def _fetch(target: Path) -> None:
    """Let Maven copy the jars next to the target, then rename: nobody sees half a set."""
    program = shutil.which("mvn")
    if program is None:
        raise BrokerMissing("no `mvn` on the PATH to fetch Kafka with")
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        pom = Path(scratch, "pom.xml")
        pom.write_text(_POM)
        made = Path(scratch, "jars")
        options = [f"-DoutputDirectory={made}", "-DincludeScope=runtime"]
        done = subprocess.run(
            [program, "-q", "-B", "-f", pom, _COPY, *options],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode != 0:
            raise BrokerMissing(f"Maven could not fetch Kafka:\n{done.stdout}{done.stderr}")
        made.rename(target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file: several test runs may meet an empty cache at once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    jars()
