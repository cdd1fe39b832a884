"""The benches in their quick form: they run, their answers are right, and a wrong answer is found.

No figure is judged here, they are those of a busy machine with few repeats.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from feeder import bench, cli
from feeder.bench import Run, measure, profile
from feeder.bench.measure import BenchError
from feeder.counter import Histogram
from support import PROJECT

pytestmark = pytest.mark.usefixtures("small_heap")

ALWAYS = {"bench", "scenario", "count", "unit", "ns", "reference", "reference_ns", "ratio", "best_ratio", "rounds",
          "spread", "noisy", "per_second"}
POSIX = os.name == "posix"


def feeder(*words, **more):
    return subprocess.run([sys.executable, "-W", "error", "-m", "feeder", *words], cwd=str(PROJECT), text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100, **more)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All benches once, quick, as a person would run them: (what was printed, the file's content)."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    done = feeder("bench", "--quick", "--json", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout, json.loads(path.read_text())


def rows(results, name):
    found = [row for row in results[1]["results"] if row["bench"] == name]
    assert found, f"no row of {name}"
    return found


def test_every_bench_gives_rows_and_every_row_has_what_the_compare_tool_reads(results):
    printed, told = results
    assert set(told) == {"feeder", "python", "machine", "source", "time", "host", "repeats", "results"}
    assert told["host"] == "tuned" and told["repeats"] == bench.QUICK_REPEATS and told["source"] != "none"
    assert {row["bench"] for row in told["results"]} == set(bench.BENCHES)
    for row in told["results"]:
        assert ALWAYS <= set(row), ALWAYS - set(row)
        assert row["count"] > 0 and row["reference_ns"] > 0 and row["ns"] >= 0 and row["rounds"] >= 1
        assert row["best_ratio"] <= row["ratio"] and row["spread"] >= 0
        for key in ("latency_ns", "reference_latency_ns"):
            if key in row:
                latency = row[key]
                assert latency["count"] > 0
                assert latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
        if "goal" in row:
            goal = row["goal"]
            assert goal["beyond"] < goal["reach"] and row[goal.get("of", "ratio")] >= 0
        assert row["scenario"] in printed and row["reference"] in printed
    scenarios = [(row["bench"], row["scenario"]) for row in told["results"]]
    assert len(set(scenarios)) == len(scenarios), "two rows of one name could not be told apart later"


def test_the_goals_of_the_plan_have_their_rows(results):
    goals = {(row["bench"], row["scenario"]): row["goal"] for row in results[1]["results"] if "goal" in row}
    for name, reach, beyond in ((("pipeline", "depth"), 2.2, 1.6), (("pipeline", "trade"), 1.0, 0.6),
                                (("pipeline", "bbo"), 1.0, 0.6), (("pipeline", "mix"), 1.3, 0.9),
                                (("pipeline", "mix: p99 of single messages to p50"), 6, 4),
                                (("wire", "half the knee"), 1.6, 1.25),
                                (("fanin", "16 instruments, same messages"), 1.3, 1.1),
                                (("fanin", "16 instruments come in, 1,000 levels a side"), 150_000, 80_000),
                                (("start", "import feeder.run"), 60e6, 30e6),
                                (("start", "from a venue that runs: first datagram"), 300e6, 150e6)):
        if name[0] in ("wire", "start") and not POSIX:
            continue
        assert (goals[name]["reach"], goals[name]["beyond"]) == (reach, beyond), name


def test_answers_are_in_the_rows(results):
    hashes = [row["packets_hash"] for row in rows(results, "pipeline") if "packets_hash" in row]
    assert len(hashes) == 4 and all(re.fullmatch("[0-9a-f]{16}", text) for text in hashes)
    assert re.fullmatch("[0-9a-f]{16}", rows(results, "book")[0]["book_hash"])
    for row in rows(results, "decode"):
        assert row["unlikely"] <= 0.01 * row["count"], row["scenario"]
    for row in rows(results, "fanin"):
        if "likely_share" in row:
            assert row["likely_share"] > 0.99
        else:
            assert 20_000 < row["memory_bytes"] < 2_000_000


@pytest.mark.skipif(not POSIX, reason="needs POSIX sockets")
def test_wire_tells_of_the_whole_way(results):
    *climb, knee, main = rows(results, "wire")
    assert (knee["scenario"], main["scenario"]) == ("the knee, CPU time", "half the knee")
    assert [row["rate"] for row in climb] == [1_000, 4_000][:len(climb)] and main["rate"] == knee["rate"] // 2
    for row in climb + [knee, main]:
        assert row["latency_ns"]["p50"] > 1_000 and row["reference_latency_ns"]["p50"] > 1_000
        assert row["jitter_ns"] == row["latency_ns"]["p99"] - row["latency_ns"]["p50"]
        if sys.platform == "linux":
            assert 0 < row["cpu_share"] < 1.5 and row["cpu_ns"] > 0 and row["minor_faults"] >= 0


def test_figures_are_shown_with_their_goals(results):
    printed, told = results
    shown = printed.splitlines()
    for row in told["results"]:
        if "goal" in row:
            line = next(text for text in shown if text.startswith(f"{row['bench']:<10}{row['scenario']}"))
            assert bench.verdict(row) in line
    assert told["source"] in printed


@pytest.mark.parametrize("figure, text", [(0.5, "beyond"), (1.0, "beyond"), (1.1, "reached"), (2.0, "reached"),
                                          (2.1, "missed")])
def test_verdicts(figure, text):
    assert bench.verdict({"ratio": figure, "goal": {"reach": 2.0, "beyond": 1.0}}) == text
    assert bench.verdict({"ratio": 9.0, "ns": figure, "goal": {"reach": 2.0, "beyond": 1.0, "of": "ns"}}) == text
    assert bench.verdict({"ratio": figure}) == ""


def test_a_rows_ratio_is_the_median_of_its_rounds():
    row = measure.row_of("name", "scenario", 10, [(200, 100), (300, 100), (900, 100)], "reference", goal=(3, 2))
    assert (row["ns"], row["reference_ns"], row["ratio"], row["best_ratio"]) == (30, 10, 3, 2)
    assert row["spread"] == round((9 - 2) / 3, 3) and row["noisy"] and row["rounds"] == 3
    assert row["goal"] == {"reach": 3, "beyond": 2}
    assert not measure.row_of("name", "scenario", 1, [(200, 100), (201, 100)], "reference")["noisy"]


def test_ours_and_the_reference_take_turns():
    turns = []
    measure.compare("name", "scenario", 1, lambda _: turns.append("ours"), lambda: turns.append("reference"), "", 3)
    assert turns == ["ours", "reference"] * 4           # one round to warm up


def test_answers_that_differ_are_an_error():
    with pytest.raises(BenchError, match="pipeline: the repeats gave 2 different answers"):
        measure.same({"a", "b"}, "pipeline")


def test_a_wrong_book_is_found(monkeypatch):
    from feeder.bench import machines
    monkeypatch.setattr(machines.Book, "top", lambda book, depth=None: ([1, 1], [2, 2]))
    with pytest.raises(BenchError, match="book: "):
        list(Run(quick=True).rows("book"))


def test_a_wrong_number_is_found(monkeypatch):
    from feeder.bench import machines
    monkeypatch.setattr(machines.fixed, "parse", lambda text, decimals: 1)
    with pytest.raises(BenchError, match="fixed: "):
        list(Run(quick=True).rows("fixed"))


def test_synthetic_traffic_is_like_the_recording():
    from feeder.bench.traffic import synthetic
    traffic = synthetic(2_000)
    shares = [len(traffic.kinds[kind]) / 2_000 for kind in ("depth", "trade", "bbo")]
    print("depth, trade, bbo:", shares)
    assert sum(shares) == pytest.approx(1, abs=0.02) and shares[2] > shares[1] > shares[0] > 0.02


def test_without_recordings_it_says_what_it_took(tmp_path):
    done = feeder("bench", "--quick", "packet", "decode", env=dict(os.environ, FEEDER_CAPTURES=str(tmp_path)))
    assert done.returncode == 0 and "venue twin's market, seed 1 (no recording found)" in done.stdout


def test_an_unknown_bench_is_refused(capsys):
    assert cli.main(["bench", "speed"]) == 2
    assert "no bench 'speed'; there are fixed, frame, decode," in capsys.readouterr().err


def test_json_on_standard_output_is_nothing_but_json():
    done = feeder("bench", "--quick", "fixed", "--json", "-")
    assert json.loads(done.stdout)["results"][0]["bench"] == "fixed" and "parse price text" in done.stderr


# -- profiles --------------------------------------------------------------------------------------------------


def test_a_profile_by_calls_names_our_places():
    done = feeder("bench", "--quick", "decode", "fixed", "--profile", "cprofile")
    assert (done.returncode, done.stderr) == (0, "")
    assert "decode: where " in done.stdout and "fixed: where " in done.stdout
    assert re.search(r"^ +[\d.]+% .* feeder/venue/\w+\.py:\d+ ", done.stdout, re.MULTILINE)
    assert "json/decoder" not in done.stdout, "the reference was watched, too"


@pytest.mark.skipif(not POSIX, reason="needs signal.setitimer")
def test_a_profile_by_samples_names_our_lines():
    done = feeder("bench", "--quick", "ring", "--profile")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^ +[\d.]+% +\d+  feeder/bench/ring\.py:\d+ ", done.stdout, re.MULTILINE)


@pytest.mark.skipif(not POSIX, reason="needs signal.setitimer")
def test_samples_are_counted_by_line_and_the_timer_is_given_back():
    before = signal.getsignal(signal.SIGPROF)
    with profile.profiler("sample") as found:
        deadline_ns = time.thread_time_ns() + 60_000_000
        while time.thread_time_ns() < deadline_ns:
            pass
    assert signal.getsignal(signal.SIGPROF) is before and signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    report = found.report()
    assert report["total"] == sum(count for count, _, _ in report["places"]) >= 5
    assert all("test_bench.py:" in place for _, _, place in report["places"])
    assert "100.0%" in "".join(profile.lines("name", dict(report, places=[[report["total"], None, "place"]])))


@pytest.mark.skipif(not POSIX, reason="needs POSIX sockets")
def test_of_a_wire_bench_the_feeder_is_profiled():
    done = feeder("bench", "--quick", "wire", "--profile", "cprofile")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"feeder/(net|venue|book|packet|ingest|websocket|publish)\S*:\d+ ", done.stdout)
    assert "feeder/bench/wire.py" not in done.stdout


def test_a_profile_that_cannot_be_is_a_sentence(monkeypatch, capsys):
    monkeypatch.delattr(signal, "setitimer", raising=False)
    assert cli.main(["bench", "--quick", "fixed", "--profile", "sample"]) == 2
    assert "no signal.setitimer; --profile cprofile works everywhere" in capsys.readouterr().err
    assert cli.main(["bench", "--quick", "fixed", "--profile", "cprofile", "--json", "x"]) == 2


# -- leaving ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="looks for children in /proc")
@pytest.mark.parametrize("name", ["wire", "start", "ring"])
def test_ctrl_c_leaves_nothing_behind(name, tmp_path):
    mark = f"bench-test-{os.getpid()}-{name}"
    process = subprocess.Popen([sys.executable, "-m", "feeder", "bench", name], cwd=str(PROJECT),
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               start_new_session=True, env=dict(os.environ, FEEDER_TEST_MARK=mark))
    deadline = time.monotonic() + 30
    while len(marked(mark)) < 2:                        # its own children carry the mark, too
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in said
    assert marked(mark) == []


def marked(text):
    """Return the pids of processes that have this text in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if text.encode() in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return found


def test_histograms_of_rounds_add_up():
    merged = Histogram()
    for values in ((1, 2), (3,)):
        part = Histogram()
        for value in values:
            part.add(value)
        merged.merge(part)
    assert merged.summary() == {"count": 3, "p50": 2, "p90": 3, "p99": 3, "p999": 3, "max": 3}
