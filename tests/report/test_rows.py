from __future__ import annotations

from optimize.facts import LayerFact
from optimize.report import charts, rows
from tests.support import reports


def test_operators_come_with_the_most_changed_first_and_none_is_lost() -> None:
    report = reports.passing()
    counted = rows.op_rows(report)
    assert (counted[0].name, counted[0].before, counted[0].after, counted[0].change) == ("Add", 74, 2, -72)
    assert report.exported is not None
    assert report.optimized is not None
    assert {row.name for row in counted} == {*report.exported.ops, *report.optimized.ops}


def test_layers_are_laid_out_by_the_first_number_in_their_names() -> None:
    grid = rows.layer_map(reports.passing().layers)
    assert grid.columns == (0, 1, 2, 3, 4, 5)
    name, cells = grid.rows[0]
    assert name == "encoder.layer.*.attention.self.query"
    assert [cell.text if cell else None for cell in cells] == ["fp32", *["int8"] * 5]


def test_layers_without_a_number_or_with_the_same_one_are_all_on_the_map() -> None:
    layers = [
        LayerFact(name=name, op_type="Conv", weight="int8")
        for name in ("stem", "a.0", "a.0", "b.0.1", "stem", "a.0")
    ]
    grid = rows.layer_map(layers)
    assert grid.columns == (None, 0)
    placed = [(name, cell.layer.name) for name, cells in grid.rows for cell in cells if cell]
    assert placed == [
        ("stem", "stem"),
        ("a.*", "a.0"),
        ("a.0", "a.0"),
        ("b.*.1", "b.0.1"),
        ("stem (2)", "stem"),
        ("a.0 (2)", "a.0"),
    ]


def test_format_shares_add_up() -> None:
    shares = rows.format_shares(reports.passing().layers)
    assert [(item.weight, item.layers) for item in shares] == [("int8", 35), ("float32", 1)]
    assert abs(sum(item.share for item in shares) - 1) < 1e-12


def test_a_waterfall_bar_spans_what_its_stage_added() -> None:
    first, second, unknown, last = charts.waterfall([0.1, 0.4, None, 0.3])
    assert first == charts.Step(0.0, 0.25)
    assert second == charts.Step(0.25, 1.0)
    assert unknown is None
    assert last is not None
    assert (last.start, last.left) == (1.0, 0.3 / 0.4)


def test_a_waterfall_of_nothing_but_zeros_or_infinities_has_no_bar_beyond_its_axis() -> None:
    for levels in ([0.0, 0.0], [float("inf"), 0.5], [float("nan")], []):
        for step in charts.waterfall(levels):
            assert step is None or 0 <= step.left <= step.left + step.width <= 1


def test_every_run_of_every_contender_is_drawn_or_counted() -> None:
    timed = reports.passing().throughput
    assert timed is not None
    svg = charts.latency_strips(timed.contenders)
    assert svg.count("<circle") == 180
    slow = timed.contenders[0].model_copy(update={"samples_ms": (*timed.contenders[0].samples_ms, 9000.0)})
    svg = charts.latency_strips((slow, *timed.contenders[1:]))
    assert svg.count("<circle") == 180
    assert "1 beyond, up to 9.00 s" in svg


def test_many_hiccups_do_not_squeeze_the_chart() -> None:
    timed = reports.passing().throughput
    assert timed is not None
    original = timed.contenders[0]
    samples = original.samples_ms[:40] + tuple(100 * sample for sample in original.samples_ms[:20])
    hiccups = original.model_copy(update={"samples_ms": samples, "p90_ms": 100 * original.p50_ms})
    svg = charts.latency_strips((hiccups, *timed.contenders[1:]))
    assert "20 beyond, up to 1" in svg
    assert ">800 ms<" in svg
