"""`feeder venue`: run the twin as a process of its own.

The first line on stdout is one JSON object that says where it listens, so that a parent can read it:
    {"venue": {"binance_spot": {"websocket_url": .., "rest_url": .., "symbols": [..]}, ..}, "seed": 1, "pid": 4711}
"""

import argparse
import json
import os
import signal
import sys
import threading

from ..errors import ConfigError, FeederError
from ..net import Loop
from .binance import DIALECTS, LISTED
from .faults import KINDS, parse
from .server import Twin
from .source import venues_in

DEFAULT_SYMBOLS = 10
MAX_SYMBOLS = 2_048


def configure(parser):
    parser.description = "An exchange on loopback: WebSocket and REST of a venue, from a seeded market or a recording."
    parser.epilog = ("example: python3 -m feeder venue --venue binance_spot --symbols BTCUSDT,ETHUSDT --rate 1000 "
                     "--fault gap@5:BTCUSDT      Then: http://HOST:PORT/twin/status, /twin/pause, /twin/book?symbol=, "
                     "/twin/fault?kind=")
    add = parser.add_argument
    add("--venue", metavar="NAMES", help=f"of {', '.join(DIALECTS)}; comma-separated (default: all; the recording's)")
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=0, help="port of the first venue, the next has the next (default: any free)")
    add("--seed", type=int, default=1, help="of the synthetic market (default %(default)s)")
    add("--rate", type=_positive, default=2_000.0, help="messages/s in all (default %(default)g)")
    add("--symbols", default=str(DEFAULT_SYMBOLS), metavar="N|LIST", help="how many, or which (default %(default)s)")
    add("--levels", type=int, help="most levels a side of the true books (default: 1600 on spot, 1000 on usdm)")
    add("--replay", metavar="FILE", help="serve a recording (.jsonl or .jsonl.gz) instead of the synthetic market")
    add("--speed", default="1x", help="of the recording: 1x, 10x, max (default %(default)s)")
    add("--fault", action="append", default=[], metavar="KIND@WHEN[+SECONDS][:SYMBOL]",
        help=f"WHEN in seconds after the first subscription; kinds: {', '.join(KINDS)}; may be repeated")
    add("--rest-latency-ms", type=float, default=20.0, metavar="MS", help="of every REST answer (default %(default)g)")
    add("--ping-interval-s", type=_positive, default=20.0, metavar="S", help="of WebSocket pings (default %(default)g)")
    add("--pong-timeout-s", type=_positive, default=60.0, metavar="S", help="until it is closed (default %(default)g)")
    add("--no-compression", action="store_true", help="do not agree to permessage-deflate")
    add("--parent", action="store_true", help="end when stdin is closed: the parent is gone")


def main(args):
    loop = Loop()
    try:
        twin = make(loop, args)
    except FeederError as error:
        loop.close()
        print(f"feeder venue: {error}", file=sys.stderr)
        return error.exit_code
    signal.signal(signal.SIGTERM, lambda *_: loop.stop())
    # A terminal's Ctrl-C reaches parent and child alike; a parent wants to take its leave first.
    signal.signal(signal.SIGINT, signal.SIG_IGN if args.parent else lambda *_: loop.stop())
    if args.parent:
        threading.Thread(target=_watch_parent, args=(loop,), name="feeder-parent", daemon=True).start()
    try:
        print(json.dumps({"venue": twin.info, "seed": twin.seed, "pid": os.getpid()}), flush=True)
        loop.run()
        if not args.parent:
            print(_summary(twin), file=sys.stderr)
    except BrokenPipeError:
        pass                             # nobody reads where we listen: then nobody needs us
    finally:
        twin.close()
        loop.close()
    return 0


def make(loop, args):
    """The Twin these arguments ask for."""
    names = args.venue.split(",") if args.venue else venues_in(args.replay) if args.replay else list(DIALECTS)
    symbols = _symbols(args.symbols)
    return Twin(loop, dict.fromkeys(names, symbols), seed=args.seed, rate=args.rate, host=args.host, port=args.port,
                levels=args.levels, faults=[parse(text) for text in args.fault], replay=args.replay,
                speed=_speed(args.speed), rest_latency_ms=args.rest_latency_ms, ping_interval_s=args.ping_interval_s,
                pong_timeout_s=args.pong_timeout_s, allow_deflate=not args.no_compression)


def _symbols(text):
    if not text.isdigit():
        return list(dict.fromkeys(symbol.strip().upper() for symbol in text.split(",") if symbol.strip()))
    count = int(text)
    if not 1 <= count <= MAX_SYMBOLS:
        raise ConfigError(f"--symbols {count}: expected 1 to {MAX_SYMBOLS}")
    made_up = [f"T{number:04d}USDT" for number in range(len(LISTED), count)]
    return (list(LISTED) + made_up)[:count]


def _speed(text):
    if text == "max":
        return None
    try:
        return _positive(text[:-1] if text.endswith("x") else text)
    except (ValueError, argparse.ArgumentTypeError):
        raise ConfigError(f"--speed {text}: expected 1x, a multiple such as 10x, or max") from None


def _positive(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _watch_parent(loop):
    try:
        while os.read(0, 4_096):         # not sys.stdin: its lock would be held while the interpreter goes
            pass
    except OSError:
        pass
    loop.stop()


def _summary(twin):
    lines = [f"feeder venue: seed {twin.seed}, {len(twin.faults_done)} faults"]
    for name, status in twin.status()["venues"].items():
        counts = status["counts"]
        lines.append(f"{name}: {status['messages']} messages, {counts.get('connections', 0)} connections, "
                     f"{counts.get('rest_requests', 0)} REST requests, at most {status['behind_ms_max']} ms behind"
                     + (f", {status['forgiven']} messages given up" if status.get("forgiven") else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="feeder venue")
    configure(_parser)
    sys.exit(main(_parser.parse_args()))
