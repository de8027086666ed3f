"""The tables and the plot of docs/performance.md are of what was measured last."""

import pytest

from bench import plot, report
from bench.measuring import LOOP, Samples, Work

PAGE = report.DOCS / report.PAGE


def test_tables_are_of_what_is_recorded() -> None:
    """What is measured anew shows in the page: `nox -s bench` writes it."""
    page = PAGE.read_text()
    for name, table in ((report.RECORD, report.table), (report.GROWTH, report.growth_table)):
        text = table(report.Report.read(report.DOCS / name))
        assert text in page
        assert report.written(page, text) == page


def test_plot_is_of_what_is_recorded() -> None:
    """The same for the plot."""
    recorded = report.Report.read(report.DOCS / report.RECORD)
    assert plot.svg(recorded.works) == (report.DOCS / report.PLOT).read_text()


def test_event_loops_have_a_table_of_their_own() -> None:
    """They are no clients: neither the table of ratios nor the plot has them."""
    loops = [Samples("asyncio", LOOP, "", [2.0, 2.0]), Samples("uvloop", LOOP, "", [1.0, 1.0])]
    work = Work("event loops: handle, Kafka", loops)
    recorded = report.Report.read(report.DOCS / report.RECORD)
    ratios, _, loops_table = report.table(
        report.Report(recorded.measured, [*recorded.works, work])
    ).partition("### Event loops")
    assert "handle, Kafka |" not in ratios
    assert "| handle, Kafka | 2 µs | **0.50** ±0.00 |" in loops_table
    assert "event loops" not in plot.svg([*recorded.works, work])


@pytest.mark.parametrize(("factor", "told"), [(1.0, 0), (1.1, 0), (1.2, 1)])
def test_check_tells_what_grew_by_more_than_15_percent(factor: float, told: int) -> None:
    """A ratio within the spread of measurements is no news, a larger one is."""
    recorded = report.Report.read(report.DOCS / report.RECORD)
    again = report.Report.read(report.DOCS / report.RECORD)
    slower = next(work for work in again.works if work.base is not None).contenders[-1]
    slower.walls[:] = [wall * factor for wall in slower.walls]
    assert len(report.compare_with(recorded, again.works)) == told


def test_measurement_without_all_repeats_is_not_recorded() -> None:
    """What is published has 7 repeats or more of all that is compared."""
    for work in report.Report.read(report.DOCS / report.RECORD).works:
        if work.base is not None:
            assert all(len(samples.walls) >= 7 for samples in work.contenders), work.title
