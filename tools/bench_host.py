"""Baseline against tuned: one feeder, live from the venue twin, at several rates and with its measures on or off.

Each run is a twin, a listener and a feeder as processes of their own, as a user would start them. A result is one JSON
file, benchmarks/SETTING/rate-N.json; the table on standard output is made from all of them. Rounds are interleaved (every setting at
one rate, then the next round), so that a noisy minute meets all settings alike; figures are medians over the rounds.

    python3 tools/bench_host.py                     # baseline and tuned
    python3 tools/bench_host.py --alone             # and tuned without each measure in turn
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTINGS = {
    "baseline": ["--profile", "baseline"],
    "tuned": [],
    "tuned, spinning": ["--idle", "spin"],
    "tuned, spinning, pinned": ["--idle", "spin", "--core", "1"],
}
ALONE = ["malloc", "lock", "prefault", "timer-slack", "switch-interval", "event-interval", "buffers", "gc"]
KEPT_UP = 0.98                 # of the rate asked for, over the time measured
COLUMNS = ("rate", "setting", "messages/s", "p50 us", "p99 us", "p99.9 us", "max us", "venue to listener p50 us", "p99 us",
           "CPU us a message", "memory MB", "minor faults/min", "major", "involuntary/min", "lost")


def feeder(*words, **more):
    environment = dict(os.environ, PYTHONPATH=ROOT)
    return subprocess.Popen([sys.executable, "-m", "feeder", *map(str, words)], env=environment, **more)


def config_folder(folder, info, port):
    """Write a configuration for the twin's venues; snapshots hold all its levels."""
    def write(name, content):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(content, file)
    write("crypto_exchanges.json", {"venues": list(info)})
    write("symbol_mapping.json", {})
    write("hft_config.json", {"output": {"port": port}, "log": {"path": ""}})
    for name, venue in info.items():
        write(f"{name}.json", {"venue": name, "websocket_url": venue["websocket_url"], "rest_url": venue["rest_url"],
                               "symbols": venue["symbols"], "snapshot_limit": 1000})


def one_run(setting, rate, seconds, port):
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        twin = feeder("venue", "--rate", rate, "--levels", 1000, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            config_folder(folder, json.loads(twin.stdout.readline())["venue"], port)
            heard, told = os.path.join(folder, "listen.json"), os.path.join(folder, "run.json")
            listener = feeder("listen", "--port", port, "--report", heard, stdout=subprocess.DEVNULL)
            runner = feeder("run", "--config", folder, *SETTINGS[setting], "--seconds", seconds, "--report", told,
                            stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(runner.pid, 0)
            runner.returncode = os.waitstatus_to_exitcode(status) if hasattr(os, "waitstatus_to_exitcode") else status
            listener.terminate()
            listener.wait()
        finally:
            twin.terminate()
            twin.wait()
            twin.stdout.close()
        if runner.returncode:
            raise SystemExit(f"bench_host: feeder run ended with {runner.returncode}")
        with open(told, encoding="utf-8") as file:
            run = json.load(file)
        with open(heard, encoding="utf-8") as file:
            listen = json.load(file)
    latency, end_to_end, per_minute = run["latency_ns"], listen["latency"]["venue_receive_to_receive_ns"], run["usage"]["per_minute"]
    return {"rate": rate, "setting": setting, "messages/s": run["messages_per_second"],
            **{f"{name} us": latency[key] / 1000 for name, key in (
                ("p50", "p50"), ("p99", "p99"), ("p99.9", "p999"), ("max", "max"))},
            "end to end p50 us": end_to_end["p50"] / 1000, "end to end p99 us": end_to_end["p99"] / 1000,
            "CPU us a message": (usage.ru_utime + usage.ru_stime) * 1e6 / max(1, run["messages"]),
            "memory MB": run["memory_bytes"] / 1e6, "minor faults/min": per_minute["minor_faults"],
            "major": per_minute["major_faults"], "involuntary/min": per_minute["involuntary_switches"],
            "lost": listen["lost"] + run["not_sent"] + run["gaps"],
            "measures": {row["measure"]: row["state"] for row in run["measures"]}}


def row_of(results):
    """Return the medians over the rounds as table cells."""
    def median(name):
        return statistics.median(result[name] for result in results)
    first = results[0]
    kept = median("messages/s") >= KEPT_UP * first["rate"]
    cells = [f"{first['rate']:,}", first["setting"], f"{median('messages/s'):,.0f}" + ("" if kept else " (behind)")]
    cells += [f"{median(name):,.0f}" for name in ("p50 us", "p99 us", "p99.9 us", "max us", "end to end p50 us", "end to end p99 us")]
    cells += [f"{median('CPU us a message'):.1f}", f"{median('memory MB'):.0f}"]
    return cells + [f"{median(name):,.0f}" for name in ("minor faults/min", "major", "involuntary/min", "lost")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog="example: python3 tools/bench_host.py --rates 2000,10000 --rounds 3")
    parser.add_argument("--out", default="benchmarks", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--rates", default="2000,5000,10000,20000", help="messages/s; default %(default)s")
    parser.add_argument("--seconds", type=float, default=8, help="of each run; default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    parser.add_argument("--settings", default="baseline,tuned", help=f"of {', '.join(map(repr, SETTINGS))}, separated by ','"
                        " or ';' where a name has commas; default %(default)s")
    parser.add_argument("--alone", action="store_true", help="also tuned without each measure, one at a time")
    parser.add_argument("--port", type=int, default=31_777)
    args = parser.parse_args()
    for name in ALONE:
        SETTINGS[f"tuned without {name}"] = [f"--no-{name}"]
    settings = [name.strip() for name in args.settings.split(";" if ";" in args.settings else ",")]
    settings += [f"tuned without {name}" for name in ALONE] if args.alone else []
    results = {}
    rates = [int(text) for text in args.rates.split(",")]
    for round_number in range(1, args.rounds + 1):
        for rate in rates:
            for setting in settings:
                sys.stderr.write(f"\rround {round_number} of {args.rounds}: {rate:,} messages/s, {setting}".ljust(78))
                sys.stderr.flush()
                results.setdefault((rate, setting), []).append(one_run(setting, rate, args.seconds, args.port))
    sys.stderr.write("\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for (rate, setting), rounds in results.items():
        folder = os.path.join(args.out, setting.replace(", ", "-").replace(" ", "-"))
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, f"rate-{rate}.json"), "w", encoding="utf-8") as file:
            json.dump(rounds, file, indent=2)
        print("| " + " | ".join(row_of(rounds)) + " |")


if __name__ == "__main__":
    main()
