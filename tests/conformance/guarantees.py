"""The table of docs/guarantees.md: backend by guarantee, from the flags and the kit's results.

`python -m conformance.guarantees results.xml` takes over what a full run of the kit showed, into
docs/conformance.json, and writes the table. It is never written by hand.
"""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree as ET

from conformance import (
    test_confluent,
    test_kafka,
    test_memory,
    test_rabbitmq,
    test_redis,
    test_redis_pubsub,
    test_sqlite,
)
from dispytch import Capabilities, plugins
from dispytch.testing.conformance import BackendConformance
from dispytch.testing.conformance.failing import FailingTests
from dispytch.testing.conformance.promise import Promise, promise_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/guarantees.md"
RECORD = ROOT / "docs/conformance.json"

SUITES: tuple[type[BackendConformance], ...] = (
    test_memory.TestMemory,
    test_sqlite.TestSQLite,
    test_kafka.TestKafka,
    test_confluent.TestConfluent,
    test_rabbitmq.TestRabbitMQ,
    test_redis.TestRedis,
    test_redis_pubsub.TestRedisPubSub,
)

Results: TypeAlias = dict[str, dict[str, str]]
"""By backend and test: `passed`, `failed`, or `expected to fail: ` and why."""

_BEGIN, _END = "<!-- generated: nox -s conformance -->", "<!-- end of what is generated -->"
_TABLE = re.compile(f"{_BEGIN}.*?{_END}", re.DOTALL)
_FLAG = re.compile(r"^ {4,8}(\w+): (.+?)\.?$", re.MULTILINE)


def tests_of(suite: type[BackendConformance]) -> dict[str, Promise]:
    """The tests of the kit that apply to a backend, those it expects to fail included."""
    return {
        name: promise
        for name, promise in _promises(*BackendConformance.__mro__).items()
        if inspect.getattr_static(suite, name) is not None
    }


def _promises(*kinds: type) -> dict[str, Promise]:
    found = {name: promise_of(test) for kind in kinds for name, test in vars(kind).items()}
    return {name: promise for name, promise in found.items() if promise is not None}


def read_results(report: Path) -> Results:
    """What pytest wrote with `--junitxml`."""
    results: Results = {suite.backend: {} for suite in SUITES}
    backends = {suite.__name__: suite.backend for suite in SUITES}
    for case in ET.parse(report).iter("testcase"):
        suite = case.get("classname", "").rpartition(".")[2]
        if suite in backends:
            results[backends[suite]][case.get("name", "")] = _result(case)
    return results


def _result(case: ET.Element) -> str:
    for kind in ("failure", "error"):
        if case.find(kind) is not None:
            return "failed"
    skipped = case.find("skipped")
    return "passed" if skipped is None else f"expected to fail: {skipped.get('message')}"


def table(results: Results) -> str:
    """The Markdown of both tables."""
    names = [suite.backend for suite in SUITES]
    described = dict(_FLAG.findall(inspect.getdoc(Capabilities) or ""))
    lines = [
        _BEGIN,
        "",
        _row("", *names),
        _row(*["---"] * (len(names) + 1)),
        *(
            _row(f"**{flag}**: {described[flag]}", *(_flag_cell(s, flag, results) for s in SUITES))
            for flag in Capabilities.__slots__
        ),
        "",
        "Under faults:",
        "",
        _row("", *names),
        _row(*["---"] * (len(names) + 1)),
        *(
            _row(promise.text.rstrip("."), *(_fault_cell(s, name, results) for s in SUITES))
            for name, promise in _promises(FailingTests).items()
        ),
        "",
        _row("", *names),
        _row(*["---"] * (len(names) + 1)),
        _row("tests of the kit that apply, passed", *(_total(s, results) for s in SUITES)),
        "",
        _END,
    ]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _flag_cell(suite: type[BackendConformance], flag: str, results: Results) -> str:
    declared = getattr(plugins.get_backend(suite.backend).capabilities, flag)
    if declared in {False, "none"}:
        return "no"
    shown = [name for name, promise in tests_of(suite).items() if promise.shows == flag]
    problem = _problem(shown, results[suite.backend])
    return problem or ("yes" if declared is True else f"per {declared}".replace("per total", "all"))


def _fault_cell(suite: type[BackendConformance], name: str, results: Results) -> str:
    if name not in tests_of(suite):
        return "does not apply"
    return _problem([name], results[suite.backend]) or "yes"


def _problem(tests: list[str], results: Mapping[str, str]) -> str | None:
    told = [results.get(name, "not run") for name in tests] or ["not shown"]
    return next((each for each in told if each != "passed"), None)


def _total(suite: type[BackendConformance], results: Results) -> str:
    passed = sum(result == "passed" for result in results[suite.backend].values())
    return f"{passed} of {len(tests_of(suite))}"


def written(page: str, results: Results) -> str:
    """The page with the table of these results."""
    return _TABLE.sub(lambda _: table(results), page)


def recorded() -> Results:
    """The results that the table is of."""
    results: Any = json.loads(RECORD.read_text())
    return {backend: dict(tests) for backend, tests in results.items()}


def main(report: str) -> None:
    """Take over the results of a run, and write the table."""
    RECORD.write_text(json.dumps(read_results(Path(report)), indent=1, sort_keys=True) + "\n")
    PAGE.write_text(written(PAGE.read_text(), recorded()))


if __name__ == "__main__":
    main(sys.argv[1])
