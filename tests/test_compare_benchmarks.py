"""compare_benchmarks.py, its page, and bench_compare.py in tools/: real results, and crafted ones for each verdict."""

import copy
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support import dice

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_compare  # noqa: E402  (the path comes first)
import compare_benchmarks  # noqa: E402
from benchmark_page import LinearScale, LogScale, without_rate  # noqa: E402

NAME = "mix"
LATENCY = {"count": 60_000, "p50": 2_700, "p90": 3_400, "p99": 44_000, "p999": 200_000, "max": 3_000_000}
HOSTILE = "<script>alert(\"1\")</script> & 'x' ]]> \x1b[31m \x00 \u202e \ud800 -->"


def row(**changes):
    """A result as feeder/bench/measure.py makes them."""
    return {"bench": "pipeline", "scenario": NAME, "count": 60_000, "unit": "message", "ns": 4_700.0,
            "reference": "json.loads", "reference_ns": 2_400.0, "ratio": 1.95, "best_ratio": 1.9, "rounds": 7,
            "spread": 0.05, "noisy": False, "per_second": 212_766, **changes}


def result(*rows, **head):
    return {"feeder": "0.1.0", "python": "CPython 3.11.7", "machine": "EPYC, 2 cores", "time": 1, "host": "none",
            "repeats": 7, "source": "60,000 messages of the recording x.jsonl", "results": list(rows or [row()]),
            **head}


@pytest.fixture
def compare(tmp_path, capsys):
    """Compare two results (or lists of results: several runs); return (exit code, the JSON, the text)."""
    def run(base, new, *words):
        for side, content in (("base", base), ("new", new)):
            shutil.rmtree(tmp_path / side, ignore_errors=True)
            (tmp_path / side / "deeper").mkdir(parents=True)
            for at, each in enumerate(content if isinstance(content, list) else [content]):
                (tmp_path / side / "deeper" / f"{at}.json").write_text(json.dumps(each), encoding="utf-8")
        code = compare_benchmarks.main([str(tmp_path / "base"), str(tmp_path / "new"), *words,
                                        "--json", str(tmp_path / "told.json"), "--html", str(tmp_path / "page.html")])
        captured = capsys.readouterr()
        assert code != 2, captured.err
        read_page(tmp_path / "page.html")
        return code, json.loads((tmp_path / "told.json").read_text(encoding="utf-8")), captured.out
    return run


def verdicts(told):
    """{figure: verdict} where there is one scenario, {(scenario, figure): verdict} where there are more."""
    several = len({each["scenario"] for each in told["figures"]}) > 1
    return {(each["scenario"], each["figure"]) if several else each["figure"]: each["verdict"]
            for each in told["figures"]}


# -- the verdict -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("base, base_spread, new, new_spread, verdict", [
    (2.0, 0.05, 2.6, 0.05, "worse"),                    # 30 %, a spread of 5 %
    (2.6, 0.05, 2.0, 0.05, "better"),
    (2.0, 0.05, 2.1, 0.05, "within spread"),            # a change of the size of the spread
    (2.0, 0.30, 2.6, 0.30, "within spread"),
    (2.0, 0.0, 2.04, 0.0, "within spread"),             # below the floor
    (2.0, 0.0, 2.08, 0.0, "worse"),
    (2.0, 0.0, 2.3, 0.20, "within spread"),             # one side's spread is enough
    (2.0, 0.20, 2.3, 0.0, "within spread"),
    (2.0, 0.03, 2.0, 0.03, "within spread"),
    (0.0, 0.0, 0.0, 0.0, "within spread"),
    (0.0, 0.0, 0.1, 0.0, "worse"),
])
def test_ratio(compare, base, base_spread, new, new_spread, verdict):
    code, told, _ = compare(result(row(ratio=base, spread=base_spread)), result(row(ratio=new, spread=new_spread)))
    assert verdicts(told) == {"ratio": verdict}
    assert code == (verdict == "worse")


def test_more_is_better_for_rates_only(compare):
    fast, slow = (row(ratio=None, ns=None, per_second=rate, cpu_share=0.5) for rate in (1_500_000, 1_000_000))
    assert verdicts(compare(result(fast), result(slow))[1])["per_second"] == "worse"
    code, told, _ = compare(result(slow), result(fast))
    assert (code, verdicts(told)["per_second"]) == (0, "better")


def test_a_rate_made_of_the_time_and_a_time_made_into_a_ratio_say_nothing_more(compare):
    assert verdicts(compare(result(), result())[1]) == {"ratio": "within spread"}
    bare = row(ratio=None, reference=None)
    assert verdicts(compare(result(bare), result(dict(bare, ns=6_000, per_second=166_667)))[1]) == {"ns": "worse"}


def test_noise_is_no_change_and_a_third_more_is(compare):
    """Rows of seven rounds, made as measure.py does: 2 % of noise a round, one in fifty rounds disturbed."""
    random = dice(41)

    def measured(number, ratio):
        rounds = [ratio * random.gauss(1, 0.02) * (1.3 if random.random() < 0.02 else 1) for _ in range(7)]
        middle = statistics.median(rounds)
        return row(scenario=f"{number}", ratio=middle, spread=(max(rounds) - min(rounds)) / middle)
    sides = [[], [], []]
    for number in range(300):
        for side, factor in zip(sides, (1, 1, 1.3)):
            side.append(measured(number, 2 * factor))
    found = verdicts(compare(result(*sides[0]), result(*sides[1]))[1])
    assert sum(verdict != "within spread" for verdict in found.values()) <= 1
    found = verdicts(compare(result(*sides[0]), result(*sides[2]))[1])
    assert sum(verdict == "worse" for verdict in found.values()) >= 200       # in the others a disturbed round hides it
    runs = [[result(*(measured(number, 2 * factor) for number in range(100))) for _ in range(3)]
            for factor in (1, 1, 1.3)]
    assert "worse" not in verdicts(compare(runs[0], runs[1])[1]).values()
    found = verdicts(compare(runs[0], runs[2])[1])
    assert sum(verdict == "worse" for verdict in found.values()) >= 95


def test_runs_of_a_side_are_one_figure(compare):
    """Median and range over the runs; the spread that the rounds tell is small here."""
    def runs(*ratios):
        return [result(row(ratio=ratio, spread=0.01)) for ratio in ratios]
    code, told, text = compare(runs(2.0, 2.1, 1.9), runs(2.2, 2.3, 2.0))
    figure = told["figures"][0]
    assert (figure["base"], figure["new"], figure["base_runs"]) == (2.0, 2.2, 3)
    assert figure["allowed"] == pytest.approx(math.hypot(0.2 * 1.6, 0.3 * 1.6))
    assert (code, figure["verdict"]) == (0, "within spread") and "3 runs" in text
    assert verdicts(compare(runs(2.0, 2.01, 1.99), runs(2.2, 2.21, 2.19))[1]) == {"ratio": "worse"}


def test_two_rounds_tell_no_spread_but_three_runs_do(compare):
    quick = [row(rounds=2, ratio=ratio, spread=0.0) for ratio in (2.0, 2.6)]
    code, told, text = compare(*(result(each, repeats=2) for each in quick))
    assert (code, verdicts(told)) == (0, {"ratio": "not judged"}) and "--quick" in text and "fewer than 3" in text
    old = [{key: value for key, value in each.items() if key != "rounds"} for each in quick]
    assert verdicts(compare(*(result(each, repeats=2) for each in old))[1]) == {"ratio": "not judged"}
    code, told, text = compare(*([result(each, repeats=2)] * 3 for each in quick))
    assert (code, verdicts(told)) == (1, {"ratio": "worse"}) and "--quick" not in text


def test_tails_take_runs_and_messages(compare):
    slow = dict(LATENCY, p99=90_000, p999=900_000)
    base, new = result(row(latency_ns=LATENCY)), result(row(latency_ns=slow))
    expected = {"ratio": "within spread", "p50": "within spread", "p99": "not judged", "p999": "not judged"}
    code, told, _ = compare(base, new)
    assert (code, verdicts(told)) == (0, expected)
    code, told, _ = compare([base] * 3, [new] * 3)
    assert (code, verdicts(told)) == (1, dict(expected, p99="worse", p999="worse"))
    few = [result(row(latency_ns=dict(each, count=2_000))) for each in (LATENCY, slow)]
    code, told, text = compare([few[0]] * 3, [few[1]] * 3)
    assert verdicts(told) == dict(expected, p99="worse", p999="not judged") and "ten messages" in text


def test_memory_faults_and_lost_messages(compare):
    base = result(row(memory_bytes=100e6, minor_faults=0, major_faults=0))
    new = result(row(memory_bytes=120e6, minor_faults=900, major_faults=1))
    assert verdicts(compare(base, new)[1]) == {
        "ratio": "within spread", "memory_bytes": "worse", "minor_faults": "not judged", "major_faults": "not judged"}
    code, told, text = compare([base] * 3, [new] * 3)
    assert verdicts(told)["minor_faults"] == verdicts(told)["major_faults"] == "worse" and "from 0" in text
    few = result(row(memory_bytes=101e6, minor_faults=10, major_faults=0))
    code, told, _ = compare([base] * 3, [few] * 3)
    assert (code, set(verdicts(told).values())) == (0, {"within spread"})


def test_what_is_on_one_side_only(compare):
    come = row(scenario="come", latency_ns=LATENCY)
    code, told, text = compare(result(row(), row(scenario="gone")), result(come, row()))
    found = verdicts(told)
    assert code == 0 and found["gone", "ratio"] == "only in base" and found["come", "p99"] == "only in new"
    assert found[NAME, "ratio"] == "within spread" and "only in base" in text
    assert compare(result(results=[]), result())[0] == 0
    assert "nothing to compare" in compare(result(results=[]), result(results=[]))[2]


# -- what can be compared --------------------------------------------------------------------------------------

def test_another_machine(compare):
    here, there = (result(row(latency_ns=LATENCY, memory_bytes=1e8, ratio=ratio), machine=machine)
                   for machine, ratio in (("EPYC, 2 cores", 2.0), ("Xeon, 8 cores", 3.0)))
    code, told, text = compare(here, there)
    assert verdicts(told) == {"ratio": "worse", "memory_bytes": "within spread", "p50": "not comparable",
                              "p99": "not comparable", "p999": "not comparable"}
    assert code == 1 and "note: Other machine" in text and "bare times and rates tell of it" in " ".join(text.split())


def test_another_python(compare):
    code, told, text = compare(result(), result(python="CPython 3.13.0"))
    assert verdicts(told) == {"ratio": "within spread"} and "note: Other Python" in text


@pytest.mark.parametrize("change, why", [
    ({"source": "the venue twin's market, seed 1"}, "other traffic"),
    ({"results": [row(count=2_000)]}, "other amount of work"),
    ({"results": [row(unit="level")]}, "other unit"),
    ({"results": [row(reference="orjson.loads")]}, "other reference")])
def test_other_things_measured(compare, change, why):
    code, told, text = compare(result(), result(**change))
    assert (code, verdicts(told)) == (0, {"ratio": "not comparable"}) and f"not comparable (1): {why}" in text


def test_the_same_traffic_by_other_words(compare):
    """How many messages were taken is told by the counts; a bench that needs no traffic says "none"."""
    for source in ("recording x.jsonl", "59,000 messages of the recording x.jsonl", "none", None):
        assert verdicts(compare(result(), result(source=source))[1]) == {"ratio": "within spread"}


def test_machine_told_together_with_python_as_it_was(compare):
    code, told, text = compare(result(python=None, machine="CPython 3.11.7, EPYC, 2 cores"), result())
    assert (code, told["base"]["python"], told["base"]["machine"]) == (0, "CPython 3.11.7", "EPYC, 2 cores")
    assert "note" not in text


def test_half_of_a_knee_that_moved(compare):
    """Its ratio is the figure; what was measured at another rate is not the same."""
    def side(rate):
        return result(row(bench="wire", scenario="half the knee", rate=rate, count=rate, latency_ns=LATENCY,
                          per_second=rate))
    code, told, text = compare([side(20_000)] * 3, [side(30_000)] * 3)
    assert verdicts(told) == {"ratio": "within spread", "p50": "not comparable", "p99": "not comparable",
                              "p999": "not comparable", "per_second": "not comparable"}
    assert "other rate (20,000 / 30,000 a second)" in text


def test_one_scenario_at_several_rates(compare):
    rows = [row(bench="wire", rate=rate, ratio=rate / 1_000) for rate in (1_000, 2_000)]
    found = verdicts(compare(result(*rows), result(*rows))[1])
    assert found[f"{NAME}, 1,000 a second", "ratio"] == found[f"{NAME}, 2,000 a second", "ratio"] == "within spread"


def test_a_machine_that_ran_slower_is_told(compare):
    text = compare(result(), result(row(reference_ns=3_000)))[2]
    assert "+25%" in text and "bare times share it" in " ".join(text.split())


# -- files -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content, key", [
    ("{", "not JSON"), ("\xff\xfe", "not JSON"), ("[" * 100_000, "not JSON"), ("3", "results"), ("{}", "results"),
    ('{"results": {}}', "results"), ('{"results": [3]}', "results[0]"), ('{"results": [{}]}', "results[0].bench"),
    ('{"results": [{"bench": 3}]}', "results[0].bench"), ('{"results": [], "machine": {}}', "machine"),
    ('{"results": [{"bench": "x", "ratio": "2"}]}', "results[0].ratio"),
    ('{"results": [{"bench": "x", "ratio": true}]}', "results[0].ratio"),
    ('{"results": [{"bench": "x", "ratio": NaN}]}', "results[0].ratio"),
    ('{"results": [{"bench": "x", "ratio": -Infinity}]}', "results[0].ratio"),
    ('{"results": [{"bench": "x", "ns": -1}]}', "results[0].ns"),
    ('{"results": [{"bench": "x", "ns": 1e19}]}', "results[0].ns"),
    ('{"results": [{"bench": "x", "latency_ns": 3}]}', "results[0].latency_ns"),
    ('{"results": [{"bench": "x", "latency_ns": {"p50": []}}]}', "results[0].latency_ns.p50"),
    ('{"results": [{"bench": "x", "goal": {"reach": "a"}}]}', "results[0].goal.reach"),
    ('{"messages_per_second": null, "usage": []}', "usage"), ("[3]", "[0]"), ('[{"rate": "x"}]', "[0].rate")])
def test_a_file_that_makes_no_sense(tmp_path, capsys, content, key):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(result()), encoding="utf-8")
    bad.write_bytes(content.encode("latin-1"))
    assert compare_benchmarks.main([str(good), str(bad)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"compare_benchmarks: {bad}: ") and key in error and error.count("\n") == 1


def test_paths_that_are_none(tmp_path, capsys):
    good = tmp_path / "good.json"
    good.write_text(json.dumps(result()), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for words, expected in (([str(tmp_path / "gone.json")], "No such file"), ([str(tmp_path / "empty")], "no *.json"),
                            ([str(good), "--html", str(tmp_path / "gone" / "page.html")], "No such file"),
                            ([str(good), "--json", str(tmp_path)], "directory")):
        assert compare_benchmarks.main([str(good), *words]) == 2
        assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        compare_benchmarks.main([str(good)])
    assert stop.value.code == 2


@pytest.mark.parametrize("key, other", [
    ("machine", "Xeon"), ("python", "CPython 3.13.0"), ("host", "tuned"), ("repeats", 2), ("source", "the twin")])
def test_runs_of_one_side_are_of_one_kind(tmp_path, capsys, key, other):
    for name, content in (("a", result()), ("b", result(**{key: other}))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    assert compare_benchmarks.main([str(tmp_path), str(tmp_path / "a.json")]) == 2
    error = capsys.readouterr().err
    assert f"b.json: {key}: " in error and "of one kind" in error


def test_missing_keys_are_not_told(compare):
    for bare in ({"bench": "x"}, {"bench": "x", "ns": 100.0}, {"bench": "x", "latency_ns": {}, "ratio": 1.0},
                 {"bench": "x", "latency_ns": {"p50": 0}, "rate": 0}):
        assert compare({"results": [bare]}, {"results": [bare]})[0] == 0


def test_rounds_of_bench_host(compare):
    def rounds(setting, p99_us, memory_mb):
        return [[{"rate": 10_000, "setting": setting, "messages/s": 9_990, "p50 us": 120.0, "p99 us": p99_us,
                  "p99.9 us": 1_800.0, "max us": 9_000.0, "end to end p50 us": 200.0, "end to end p99 us": 900.0,
                  "CPU us a message": 20.0, "memory MB": memory_mb, "minor faults/min": 0.0, "major": 0.0,
                  "involuntary/min": 4.0, "lost": 0}] * 3]
    code, told, text = compare(rounds("baseline", 600.0, 38.0), rounds("tuned", 400.0, 71.0))
    found, at = verdicts(told), "receive to send, 10,000 messages/s"
    assert (code, found[at, "memory_bytes"], found[at, "p99"]) == (1, "worse", "better")
    assert found[at, "cpu_ns"] == found["venue to listener, 10,000 messages/s", "p99"] == "within spread"
    assert "host baseline" in text and f"live: {at}" in text


# -- the table and the page ------------------------------------------------------------------------------------

class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what is there."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read_page(path):
    """Parse a page as HTML and as XML; it must refer to nothing outside of itself."""
    text = path.read_text(encoding="utf-8")
    ElementTree.fromstring(text.partition("\n")[2])
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "use", "foreignobject"} & set(page.tags)
    assert not {"href", "src", "srcset", "style"} & {name for name, _ in page.attributes}
    assert not any(name.startswith("on") for name, _ in page.attributes)
    machinery = "".join(re.findall(r"<[^>]*>", text)) + style_of(text)
    assert not re.search(r"https?:|url\(|@import|\bnan\b|\binf\b", machinery)
    return page


def style_of(text):
    return text.partition("<style>")[2].partition("</style>")[0]


def test_page_has_a_plot_for_all_that_is_told(compare, tmp_path):
    def side(factor):
        rows = [row(latency_ns=LATENCY, goal={"reach": 1.3, "beyond": 0.9})]
        for rate in (1_000, 10_000, 100_000):
            latency = {key: value * factor * (1 + rate / 50_000) for key, value in LATENCY.items()}
            rows.append(row(bench="wire", scenario=f"{rate:,} messages/s", rate=rate, latency_ns=latency,
                            reference_latency_ns=LATENCY, cpu_ns=9_000.0, cpu_share=0.3, memory_bytes=40e6 * factor,
                            minor_faults=12, major_faults=1, ratio=1.2))
        return result(*rows)
    _, told, text = compare([side(1)] * 2, [side(1.3)] * 3)
    page = read_page(tmp_path / "page.html")
    words = " ".join(page.words)
    for title in ("Time ÷ reference", "Throughput", "Latency over rate", "Latency", "CPU share",
                  "Memory", "Page faults, minor", "Page faults, major", "All figures", "goal to reach",
                  "p50 of the reference", "messages a second offered", "CPU time"):
        assert title in words, title
    assert page.tags.count("figure") == 1 + 4                       # latency over rate, then four curves
    assert "prefers-color-scheme: dark" in style_of((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert text.index("1,000 m") < text.index("10,000 m") < text.index("100,000 m") and "wire" in page.words


def test_hostile_names_do_no_harm(compare, tmp_path):
    hostile = result(row(scenario=HOSTILE, bench=HOSTILE, reference=HOSTILE, latency_ns=LATENCY), machine=HOSTILE,
                     source=HOSTILE, feeder=HOSTILE)
    _, told, text = compare(hostile, result(row(scenario=HOSTILE, reference="x"), source="y"))
    assert "\x1b" not in text and "\x00" not in text and "\u202e" not in text
    page = read_page(tmp_path / "page.html")
    assert any('<script>alert("1")</script> & \'x\' ]]> ?[31m ? ? ? -->' in words for words in page.words)


@pytest.mark.parametrize("length", [1, 39, 40, 41, 99, 100, 101, 500])
def test_table_fits_100_columns(compare, length):
    name = ("x" * 12 + " ") * length
    huge = row(scenario=name[:length], ratio=123_456_789.0, latency_ns={"p50": 1e12}, memory_bytes=1e12,
               minor_faults=1e9)
    for other in (dict(huge, unit="other"), dict(huge, ratio=0.001), huge):
        text = compare(result(huge), result(other))[2]
        assert max(map(len, text.splitlines())) <= 100
        assert not {"comparable", "spread", "judged"} & {line.strip() for line in text.splitlines()}, "a row was cut"
    assert name[:length].replace(" ", "") in "".join(text.split())


def test_scales():
    scale = LogScale(2_500, 60_000, 0, 100)
    assert scale.ticks == [2_000, 5_000, 10_000, 20_000, 50_000, 100_000]
    assert scale(2_000) == 0 and scale(100_000) == pytest.approx(100)
    assert LogScale(3, 3e9, 0, 1).ticks == [10.0 ** power for power in range(11)]
    assert len(LogScale(200, 200, 0, 1).ticks) == 2
    assert LinearScale(1.04, 0, 1).ticks == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1.25])
    assert LinearScale(2, 0, 1, 1).ticks == [0, 1, 2]
    random = dice(43)
    for _ in range(200):
        low, high = sorted(10 ** random.uniform(-3, 12) for _ in range(2))
        log, linear = LogScale(low, high, 0, 1), LinearScale(high, 0, 1)
        assert -1e-3 <= log(low) <= log(high) <= 1.001 and linear(high) <= 1.001
        assert 2 <= len(log.ticks) <= 20 and 2 <= len(linear.ticks) <= 8
    assert without_rate("mix, 10,000 messages/s", 10_000) == "mix" and without_rate("10000", 10_000) == ""
    assert without_rate("110,000", 10_000) == "110,000"


def test_mutated_results_are_read_or_refused(tmp_path, capsys):
    """Whatever stands in a file: a verdict or a sentence, never a traceback."""
    random = dice(42)
    whole = result(row(latency_ns=LATENCY, goal={"reach": 1, "beyond": 2}),
                   row(rate=5, reference_latency_ns=LATENCY, cpu_share=1))
    garbage = (None, True, -1, 0, 1e-300, 1e18, 10 ** 400, "", "x", HOSTILE, [], {}, [[]], {"p50": 1}, "none", 0.5)
    good, bad, page = (tmp_path / name for name in ("good.json", "bad.json", "page.html"))
    good.write_text(json.dumps(whole), encoding="utf-8")
    codes = set()
    for _ in range(300):
        mutated = copy.deepcopy(whole)
        for _ in range(random.randint(1, 3)):
            rows = mutated["results"] if isinstance(mutated["results"], list) else []
            place = random.choice([mutated, *(each for each in rows if isinstance(each, dict))])
            key = random.choice(list(place))
            if isinstance(place.get(key), dict) and place[key] and random.random() < 0.6:
                place, key = place[key], random.choice(list(place[key]))
            place[key] = copy.deepcopy(random.choice(garbage))
        bad.write_text(json.dumps(mutated), encoding="utf-8")
        sides = random.sample([str(good), str(bad)], 2)
        code = compare_benchmarks.main([*sides, "--html", str(page)])
        error = capsys.readouterr().err
        assert code in (0, 1, 2) and bool(error) == (code == 2)
        if code < 2:
            read_page(page)
        codes.add(code)
    assert codes >= {0, 2}


# -- the real thing --------------------------------------------------------------------------------------------

def feeder(*words):
    subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-m", "feeder", *map(str, words)], check=True,
                   env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, timeout=60)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Two results of the same bench, one after the other."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("first", "second"):
        feeder("bench", "--quick", "decode", "packet", "pipeline", "ring", "--json", folder / f"{name}.json")
    return folder


def test_real_results_are_the_same_or_noise(real, tmp_path):
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", ROOT / "tools" / "compare_benchmarks.py",
                           real / "first.json", real / "second.json", "--json", "-", "--html", tmp_path / "page.html"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0 and "not judged" in done.stderr
    told = json.loads(done.stdout)
    assert set(verdicts(told).values()) <= {"within spread", "not judged"} and len(told["figures"]) > 10
    page = read_page(tmp_path / "page.html")
    assert "Latency" in page.words and "Throughput" in page.words


def test_a_third_more_in_a_real_result_is_found(real, compare):
    """The real rows, as if of seven rounds 6 % apart; one of them doctored."""
    content = json.loads((real / "first.json").read_text(encoding="utf-8"))
    content["repeats"] = 7
    for each in content["results"]:
        each.update(rounds=7, spread=0.06)
    doctored = copy.deepcopy(content)
    victim = next(each for each in doctored["results"] if (each["bench"], each["scenario"]) == ("pipeline", "mix"))
    victim["ratio"] *= 1.3
    code, told, text = compare(content, doctored)
    assert code == 1 and "WORSE" in text
    worse = [each for each in told["figures"] if each["verdict"] == "worse"]
    assert [(each["bench"], each["scenario"], each["figure"]) for each in worse] == [("pipeline", "mix", "ratio")]
    code, told, _ = compare(doctored, content)
    assert code == 0 and [each["verdict"] for each in told["figures"]].count("better") == 1
    victim["ratio"] *= 1.06 / 1.3
    assert compare(content, doctored)[0] == 0


def test_report_of_a_real_run(tmp_path, capsys):
    path = tmp_path / "run.json"
    feeder("run", "--seconds", 0.5, "--report", path)
    assert compare_benchmarks.main([str(path), str(path)]) == 0
    text = capsys.readouterr().out
    for label in ("a second", "p99.9", "memory", "minor faults", "lost"):
        assert re.search(rf"^(run: all it took in)? +{label} ", text, re.MULTILINE), label


@pytest.mark.stress
def test_rounds_of_the_real_bench_host(tmp_path, capsys):
    subprocess.run([sys.executable, ROOT / "tools" / "bench_host.py", "--rates", "500", "--seconds", "1",
                    "--rounds", "3", "--out", tmp_path], check=True, timeout=120, stdout=subprocess.DEVNULL)
    sides = [str(tmp_path / setting) for setting in ("baseline", "tuned")]
    assert compare_benchmarks.main([*sides, "--html", str(tmp_path / "p.html")]) < 2
    assert "live: receive to send, 500 messages/s" in capsys.readouterr().out
    read_page(tmp_path / "p.html")


# -- measuring both sides --------------------------------------------------------------------------------------

DAY = {"GIT_AUTHOR_DATE": "2020-02-02T12:00:00", "GIT_COMMITTER_DATE": "2020-02-02T12:00:00"}
GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
       "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
needs_git = pytest.mark.skipif(not shutil.which("git") or os.name != "posix", reason="git and POSIX signals are needed")


class History:
    """A repository of its own with this feeder in it: a commit of long ago, and on request one of now."""

    def __init__(self, folder):
        self.tree, self.temporary = folder / "tree", folder / "temporary"
        self.temporary.mkdir()
        for name in ("feeder", "tools"):
            shutil.copytree(str(ROOT / name), str(self.tree / name), ignore=shutil.ignore_patterns("__pycache__"))
        self.environment = {**os.environ, **GIT, "TMPDIR": str(self.temporary)}
        self.git("init", "-q")

    def git(self, *words, **environment):
        return subprocess.run(["git", *words], cwd=str(self.tree), env={**self.environment, **environment}, check=True,
                              stdout=subprocess.PIPE, text=True).stdout

    def commit(self, **environment):
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "x", **environment)

    def start(self, *words):
        # A background shell hands down an ignored SIGINT, which would make Ctrl-C void.
        return subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "tools/bench_compare.py", *words],
                                cwd=str(self.tree), env=self.environment, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def run(self, *words):
        child = self.start(*words)
        out, err = child.communicate(timeout=60)
        self.check_clean()
        return child.returncode, out, err

    def check_clean(self):
        assert len(self.git("worktree", "list").splitlines()) == 1 and list(self.temporary.iterdir()) == []


@pytest.fixture
def history(tmp_path):
    return History(tmp_path)


@needs_git
def test_the_last_commit_before_today_against_the_files_here(history):
    history.commit(**DAY)
    newer = "def bench_newer(run):\n    return bench_packet(run)\n\n\n"
    for name, old, new in (("__init__.py", '"packet":', '"newer": ("machines", "x"), "packet":'),
                           ("machines.py", "def bench_packet(", newer + "def bench_packet(")):
        path = history.tree / "feeder" / "bench" / name
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    history.commit()
    old, new = history.git("log", "--format=%h").split()[::-1]
    code, out, err = history.run("commits", "--quick", "--rounds", "3", "--benches", "packet newer")
    assert code in (0, 1), err                               # three quick runs judge, and may err
    assert f"base is {old} of 2020-02-02" in err and f"new is {new}" in err
    assert re.search(rf"newer is left out; {old}: .*no bench 'newer'", err)
    assert [line.partition(" (")[0] for line in err.splitlines() if ": packet, " in line] == [
        f"round {number} of 3: packet, {side}" for number in (1, 2, 3) for side in (old, "here")]
    assert f"base ({old}): 3 runs" in out and "packet: trades" in out and "newer" not in out
    folder = history.tree / "benchmarks" / "compare" / "commits"
    read_page(folder / "comparison.html")
    assert sorted(path.name for path in (folder / "here").iterdir()) == [
        f"packet-round-{number}.json" for number in (1, 2, 3)]


@needs_git
def test_a_history_without_yesterday(history):
    history.commit()
    code, out, err = history.run("commits", "--quick", "--benches", "packet")
    assert (code, out) == (0, "") and "no commit before today" in err and "BASE=REV" in err
    for base in ("no-such-commit", "--all"):
        code, _, err = history.run("commits", f"--base={base}", "--quick", "--benches", "packet")
        assert code == 2 and base in err
    code, _, err = history.run("commits", "--base", "HEAD", "--quick", "--benches", "no-such-bench")
    assert code == 2 and "every bench was left out" in err and "no bench 'no-such-bench'" in err


@needs_git
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_worktree_goes_on_a_signal_too(history, number):
    history.commit(**DAY)
    child = history.start("commits", "--benches", "ring pipeline", "--rounds", "1")
    told = ""
    while "round 1 of 1: ring, " not in told:
        told += child.stderr.read(1)
    assert len(history.git("worktree", "list").splitlines()) == 2
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == 128 + number
    history.check_clean()


def test_results_of_an_earlier_time_do_not_mix_in(tmp_path):
    side = bench_compare.Side("here", ROOT)
    (tmp_path / "here").mkdir()
    for name in ("packet-round-9.json", "mine.json"):
        (tmp_path / "here" / name).write_text("{}", encoding="utf-8")
    assert bench_compare.measure([side], tmp_path, ["packet"], 1, ("--quick",)) == {}
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["mine.json", "packet-round-1.json"]
