"""Benchmark harness: records, targets, tables and the command line."""

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import document, growth, overhead, records, run, storage, timing  # noqa: E402
from benchmarks.targets import ON_INTEL, TARGETS  # noqa: E402
from benchmarks.timing import Settings  # noqa: E402

FIELDS = ["id", "what", "value", "target", "met", "dense", "unit", "threads", "repeats", "spread", "machine", "runs"]
AMD, INTEL = "Measured on AMD EPYC (2 logical cores).", "Measured on Intel(R) Xeon(R) Processor (2 logical cores)."


def record(id="1-batch32", value=0.5, machine=AMD, **settings):
    return replace(Settings(**settings).record(id, "a step", value, "ratio (dense in ms)", 2.0, 7), machine=machine)


@pytest.mark.parametrize(("value", "met"), [(0.3, True), (0.35, True), (0.36, False), (None, False)])
def test_a_record_has_its_target_and_says_if_it_is_met(value, met):
    made = record(value=value, threads=1)
    assert (made.target, made.met, made.threads, made.repeats) == (0.35, met, 1, 7)
    assert list(asdict(made)) == FIELDS


def test_a_record_without_a_target_is_neither_met_nor_missed():
    assert (record("compile-dense").target, record("compile-dense").met) == (None, None)


@pytest.mark.parametrize(("machine", "target"), [(AMD, 0.35), (INTEL, 0.45), ("", 0.35)])
def test_a_target_may_depend_on_the_processor_s_maker(machine, target):
    made = record(value=0.4, machine=machine)
    assert (made.target, made.met) == (target, target > 0.4)


def test_every_target_belongs_to_a_measured_row():
    assert {records.row_of(id) for id in TARGETS | ON_INTEL} <= set(run.ROWS)


def test_merging_replaces_measured_rows_and_keeps_the_others_in_order(tmp_path):
    path = tmp_path / "deep" / "results.json"
    earlier = [asdict(record(id, 9.0)) for id in ("1-batch32", "1-batch512", "10-density0.1-batch1", "roofline-gemm")]
    records.write(path, earlier)
    merged = records.merge(records.read(path), [record("2-batch128", 1.0), record("1-batch32", 0.5)], ["1", "2"])
    found = {row["id"]: row["value"] for row in merged}
    assert list(found.items()) == [
        ("1-batch32", 0.5),
        ("2-batch128", 1.0),
        ("10-density0.1-batch1", 9.0),
        ("roofline-gemm", 9.0),
    ]
    assert all(list(row) == FIELDS for row in merged)
    assert records.read(tmp_path / "none.json") == []


def test_another_maker_s_records_stay_beside_new_ones(tmp_path):
    earlier = [asdict(record(machine=INTEL)), asdict(record(value=9.0))]
    merged = records.merge(earlier, [record(value=0.3)], ["1"])
    assert [(row["machine"], row["value"], row["met"]) for row in merged] == [(INTEL, 0.5, False), (AMD, 0.3, True)]
    path = tmp_path / "performance.md"
    document.write_table(path, merged)
    header, _, line = path.read_text().splitlines()[-4:-1]
    cells = dict(zip(header.split(" | "), line.split(" | "), strict=True))
    shown = {name: cells[name] for name in ("Intel", "Intel target", "AMD", "AMD target")}
    assert shown == {"Intel": "0.5", "Intel target": "0.45, **missed**", "AMD": "0.3", "AMD target": "0.35"}
    assert [text in path.read_text() for text in (AMD, INTEL)] == [True, True]


def test_the_summary_has_each_maker_s_value_beside_the_others():
    found = [record("1-batch128", 0.386), record("1-batch128", 0.58, machine=INTEL), record("11-fc-step128", 0.21)]
    found.append(record("19-vit-block", 0.9, machine=INTEL))
    assert document.summary([asdict(each) for each in found]).splitlines() == [
        "| share of the dense network's (AMD / Intel) | single weights | blocks | whole units |",
        "|---|---|---|---|",
        "| step of FC 6 x 1000, batch 128 | 0.39 / 0.58 | – | 0.21 / – |",
        "| step of a small ViT, batch 32 | – | – / 0.90 | – |",
    ]


def test_every_id_of_the_summary_was_measured():
    measured = {found["id"] for found in records.read(ROOT / "benchmarks" / "results.json")}
    assert {id for ids in document.OVERVIEW.values() for id in ids if id} <= measured


def test_runs_add_up_to_their_median_on_the_same_machine():
    merged = [asdict(record(value=0.4)), asdict(record("1-batch128", value=None))]
    for value in (0.3, 0.34, 0.36):
        merged = records.merge(merged, [record(value=value), record("1-batch128", value=value)], ["1"], add=True)
    first, second = merged
    assert (first["value"], first["runs"], first["spread"]) == (pytest.approx(0.35), [0.4, 0.3, 0.34, 0.36], [0.3, 0.4])
    assert (first["met"], second["runs"]) == (True, [0.3, 0.34, 0.36])
    other = record(value=0.2, machine=AMD.replace("EPYC", "Ryzen"))
    assert [row["runs"] for row in records.merge(merged, [other], ["1"], add=True)] == [None]


def test_the_table_replaces_only_the_text_between_the_markers(tmp_path):
    path = tmp_path / "performance.md"
    marked = [f"{begin}\nold\n{document.END}" for begin in (document.SUMMARY, document.BEGIN)]
    path.write_text("\n\n".join(["# By hand", *marked, "Also by hand\n"]))
    document.write_table(path, [asdict(record(value=0.36)), asdict(record("compile-dense", None))])
    first = path.read_text()
    assert first.startswith("# By hand\n")
    assert first.endswith(f"{document.END}\n\nAlso by hand\n")
    assert "| 1-batch32 | a step | 0.36 | 0.35, **missed** | 2 | ratio (dense in ms) |" in first
    assert "| compile-dense | a step |  |  | 2 |" in first
    assert "old" not in first
    document.write_table(path, [asdict(record(value=0.36)), asdict(record("compile-dense", None))])
    assert path.read_text() == first


def test_a_document_without_markers_is_refused_and_unchanged(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text("# By hand\n")
    with pytest.raises(ValueError, match="for the table to stand between"):
        document.write_table(path, [])
    assert path.read_text() == "# By hand\n"


def test_the_project_s_documents_have_each_marker_once_with_an_end():
    text = (ROOT / "docs" / "performance.md").read_text()
    begins = re.findall(r"<!-- table: .* -->", text)
    assert {
        document.SUMMARY,
        document.BEGIN,
        "<!-- table: accuracy mnist_fashion -->",
        "<!-- table: accuracy densities -->",
    } <= set(begins)
    assert len(set(begins)) == len(begins)
    marks = re.findall(r"<!-- (table|end of table)\b", text)
    assert marks == ["table", "end of table"] * len(begins)


def test_contestants_take_turns_and_medians_exclude_the_warm_up(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def act(name, costs):
        calls.append(name)
        clock[0] += costs[calls.count(name) - 1]

    slow = [100, 100, 9, 9, 1, 1, 2, 2]
    contestants = {"a": lambda: act("a", slow), "b": lambda: act("b", [1] * 8)}
    times = timing.take_turns(contestants, rounds=3, burst=2, warm_up=1)
    assert [times["a"], times["b"]] == [2, 1]
    assert "".join(calls) == "bbaaaabbbbaaaabb"


def test_a_ratio_is_the_median_of_the_rounds_ratios_with_its_quartiles():
    times = timing.Times({"dense": [1.0, 10.0, 1.0, 2.0, 1.0], "other": [2.0, 10.0, 3.0, 8.0, 0.5]})
    found = Settings().ratio("1-batch32", "a step", times, "other", "dense", 5)
    assert (found.value, found.spread, found.dense) == (2.0, [1.0, 3.0], 1000.0)
    assert "| 2 (1 to 3) | 0.35, **missed** |" in document.by_maker([asdict(replace(found, machine=AMD))])
    assert timing.Times({"dense": [2.0], "other": [1.0]}).ratio("other", "dense") == (0.5, 0.5, 0.5)


def test_quick_has_fewer_rounds_unless_repeats_are_set():
    assert [Settings(quick=q).rounds(40) for q in (False, True)] == [40, 8]
    assert Settings(repeats=2, quick=True).rounds(40) == 2
    assert Settings(quick=True).cases((1, 2, 3), (2,)) == (2,)


def test_quick_runs_never_overwrite_full_ones():
    full, quick = run.paths(None, quick=False), run.paths(None, quick=True)
    assert full == (ROOT / "benchmarks" / "results.json", ROOT / "docs" / "performance.md")
    assert not set(full) & set(quick)


@pytest.mark.parametrize("arguments", [["--only", "1,99"], ["--threads", "0"], ["--repeats", "-1"]])
def test_bad_arguments_are_refused_before_anything_is_measured(arguments, capsys):
    with pytest.raises(SystemExit):
        run.parse(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_the_command_measures_the_requested_rows_and_writes_both_files(tmp_path, monkeypatch, capsys):
    measured = []

    def fake(settings):
        measured.append(settings)
        yield record("8-switch", 0.9)

    monkeypatch.setitem(run.ROWS, "8", fake)
    run.main(["--only", "8", "--threads", "1", "--output-dir", str(tmp_path)])
    assert [(s.threads, s.quick) for s in measured] == [(1, False)]
    assert [row["met"] for row in json.loads((tmp_path / "results.json").read_text())] == [True]
    assert "8-switch" in (tmp_path / "performance.md").read_text()
    assert "1 of 1 targets met" in capsys.readouterr().out


def test_the_entropy_of_a_mask():
    assert storage.entropy(0.5) == 1.0
    assert storage.entropy(0.0) == storage.entropy(1.0) == 0.0
    assert storage.entropy(0.1) == pytest.approx(0.469, abs=1e-3)


def test_runs_with_and_without_loggers_take_turns_and_medians_are_compared(monkeypatch):
    ways, with_them, without = [], iter([11.0, 12.0, 90.0]), iter([10.0, 8.0, 10.0])

    def fake(command, threads):
        ways.append("report=false" in command)
        return (
            (next(without), "loggers and report: 0.0\n")
            if ways[-1]
            else (next(with_them), "...: loggers and report: 0.6\n")
        )

    monkeypatch.setattr(overhead, "whole_process", fake)
    ratio, share = overhead.compare(Settings(threads=1))
    assert ways == [True, False, False, True, True, False]
    assert (ratio.value, ratio.dense, ratio.repeats, ratio.met) == (1.2, 10.0, 3, False)
    assert "pair by pair 1.100 to 9.000" in ratio.what
    assert (share.value, share.met) == (pytest.approx(0.05), False)


@pytest.mark.parametrize("places", [growth.BESIDE_TRAINING, overhead.CALLS], ids=["growth", "overhead"])
def test_every_function_that_is_timed_inside_a_run_exists(places):
    assert [f"{owner.__name__}.{name}" for owner, name in places if not callable(getattr(owner, name, None))] == []


def test_a_row_that_fails_costs_no_other_row_and_keeps_its_records(tmp_path, monkeypatch, capsys):
    def failing(settings):
        yield record("1-batch32")
        raise RuntimeError("no memory")

    monkeypatch.setitem(run.ROWS, "1", failing)
    monkeypatch.setitem(run.ROWS, "8", lambda settings: iter([record("8-switch")]))
    records.write(tmp_path / "results.json", [asdict(record("1-batch32", 0.25))])
    with pytest.raises(SystemExit, match="rows that failed, and keep their records: 1"):
        run.main(["--only", "1,8", "--output-dir", str(tmp_path)])
    values = {each["id"]: each["value"] for each in records.read(tmp_path / "results.json")}
    assert values == {"1-batch32": 0.25, "8-switch": 0.5}
    assert "no memory" in capsys.readouterr().err
