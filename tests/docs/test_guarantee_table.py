"""The table of docs/guarantees.md is what the flags and the kit's results say now."""

import pytest

from conformance import guarantees
from dispytch.testing.conformance import BackendConformance


def test_table_is_not_stale() -> None:
    """Changed flags, promises or results show in the page: `nox -s conformance` writes it."""
    page = guarantees.PAGE.read_text()
    assert guarantees.written(page, guarantees.recorded()) == page
    assert guarantees.table(guarantees.recorded()) in page


@pytest.mark.parametrize("suite", guarantees.SUITES, ids=lambda suite: suite.backend)
def test_results_are_of_the_tests_there_are(suite: type[BackendConformance]) -> None:
    """A test that was added, or applies by now, makes the record stale."""
    assert guarantees.recorded()[suite.backend].keys() == guarantees.tests_of(suite).keys()


def test_changed_flag_or_result_changes_the_table() -> None:
    """The table is of the results: one that is not `passed` is told."""
    results = guarantees.recorded()
    results["memory"]["test_headers_are_as_declared"] = "failed"
    assert guarantees.table(results) != guarantees.table(guarantees.recorded())
    del results["memory"]["test_headers_are_as_declared"]
    assert "| not run |" in guarantees.table(results)


ELSEWHERE = {
    "test_priority_is_as_declared",  # a twin of the kit's own tests
}


def test_every_test_of_the_kit_applies_somewhere() -> None:
    """A test that needs what nothing gives would never run, and nobody would miss it."""
    applied = {name for suite in guarantees.SUITES for name in guarantees.tests_of(suite)}
    assert applied | ELSEWHERE == guarantees.tests_of(BackendConformance).keys()
