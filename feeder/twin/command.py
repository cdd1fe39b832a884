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
from .faults import ALL_KINDS, parse
from .registry import DIALECTS
from .server import Twin
from .source import venues_in

DEFAULT_VENUES = "binance_spot,binance_usdm"
DEFAULT_SYMBOLS = 10
MAX_SYMBOLS = 2_048


def configure(parser):
    parser.description = "An exchange on loopback: WebSocket and REST of a venue, from a seeded market or a recording."
    parser.epilog = ("example: python3 -m feeder venue --venue binance_spot --symbols BTCUSDT,ETHUSDT --rate 1000 "
                     "--fault gap@5:BTCUSDT      Then: http://HOST:PORT/twin/status, /twin/pause, /twin/book?symbol=, "
                     "/twin/fault?kind=")
    add = parser.add_argument
    add("--venue", metavar="NAMES", help=f"of {', '.join(DIALECTS)}; comma-separated, or all "
        f"(default: {DEFAULT_VENUES}; the recording's)")
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    add("--port", type=int, default=0, help="port of the first venue, the next has the next (default: any free)")
    add("--seed", type=int, default=1, help="of the synthetic market (default %(default)s)")
    add("--rate", type=_positive, default=2_000.0, help="messages/s in all (default %(default)g)")
    add("--symbols", default=str(DEFAULT_SYMBOLS), metavar="N|LIST",
        help="how many, or which: as the venue spells them, or BTC/USDT for each venue's own (default %(default)s)")
    add("--levels", type=int, help="most levels a side of the true books (default: the venue's)")
    add("--replay", metavar="FILE", help="serve a recording (.jsonl or .jsonl.gz) instead of the synthetic market")
    add("--speed", default="1x", help="of the recording: 1x, 10x, max (default %(default)s)")
    add("--fault", action="append", default=[], metavar="KIND@WHEN[+SECONDS][:SYMBOL]",
        help=f"WHEN in seconds after the first subscription; kinds: {', '.join(ALL_KINDS)}; may be repeated")
    add("--rest-latency-ms", type=float, default=20.0, metavar="MS", help="of every REST answer (default %(default)g)")
    add("--ping-interval-s", type=_positive, metavar="S", help="of WebSocket pings, where the venue pings (default 20)")
    add("--pong-timeout-s", type=_positive, metavar="S", help="until it is closed (default 60)")
    add("--time-scale", type=_positive, default=1.0, metavar="N",
        help="heartbeats, timeouts and notices come so many times faster (default %(default)g)")
    add("--lifetime-s", type=_positive, default=0, metavar="S", help="connections end after so long (default: never)")
    add("--setting", action="append", default=[], metavar="VENUE.NAME=VALUE",
        help="of a venue's dialect, what is unsure there; may be repeated")
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
    names = (args.venue or (",".join(venues_in(args.replay)) if args.replay else DEFAULT_VENUES)).split(",")
    if names == ["all"]:
        names = list(DIALECTS)
    venues = {name: _symbols(args.symbols, DIALECTS.get(name)) for name in names}
    return Twin(loop, venues, seed=args.seed, rate=args.rate, host=args.host, port=args.port,
                levels=args.levels, faults=[parse(text) for text in args.fault], replay=args.replay,
                speed=_speed(args.speed), rest_latency_ms=args.rest_latency_ms, ping_interval_s=args.ping_interval_s,
                pong_timeout_s=args.pong_timeout_s, allow_deflate=not args.no_compression,
                time_scale=args.time_scale, lifetime_s=args.lifetime_s, settings=_settings(args.setting))


def _symbols(text, dialect):
    """As the venue's dialect spells them; an unknown venue is refused later, by name."""
    if dialect is None:
        return []
    if text.isdigit():
        if not 1 <= int(text) <= MAX_SYMBOLS:
            raise ConfigError(f"--symbols {text}: expected 1 to {MAX_SYMBOLS}")
        return dialect().symbols(int(text))
    found = []
    for symbol in filter(None, map(str.strip, text.split(","))):
        base, slash, quote = symbol.upper().partition("/")
        found.append(dialect().spell(base, quote) if slash else dialect().own(symbol))
    return list(dict.fromkeys(found))


def _settings(texts):
    """['okx.idle_s=5'] -> {"okx": {"idle_s": 5.0}}"""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        venue, dot, setting = name.partition(".")
        try:
            if not (equals and dot and venue in DIALECTS):
                raise ValueError
            settings.setdefault(venue, {})[setting] = json.loads(value)
        except ValueError:
            raise ConfigError(f"--setting {text}: expected VENUE.NAME=VALUE, the value as JSON; venues: "
                              f"{', '.join(DIALECTS)}") from None
    return settings


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
