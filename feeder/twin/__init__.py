"""The venue twin: an exchange on loopback that keeps the true books and can be told to misbehave.

    market     the synthetic market, seeded          source     market or recording, paced
    dialect    what a venue's dialect is             faults     what can go wrong, and how to ask for it
    binance, bybit, ...: a dialect each              registry   one line each
    server     venues, channels, faults, admin       peer       one connection
    command    `feeder venue`

In this process: `server.Twin(loop, {"binance_spot": ["BTCUSDT"]}, rate=500)`. As a child: `spawn(["--rate", "500"])`.

To add a venue, write from its fact sheet (not from the feeder's module: two readings show a mistake, one hides it)
    a Dialect    name, level_count, connects, faults it can show, settings for what is unsure; route(target),
                 spell(base, quote), spec(symbol), words(spec), channel(key, source), rest(...)
    a Session    take(opcode, payload, now_ns): its requests, acknowledgements, limits; heartbeats by deadline_ns and
                 expire(now_ns); finish(channel, text) where each connection counts its own messages; farewell(now_ns)
    its Channels texts(event, now_ms) for each kind of event, first(now_ms) for newcomers, idle(now_ms) for keep-alives,
                 hurt(kind, event, now_ms) for faults of content; BookChannel with a Window tells windowed books
    a line in registry.py, a line in tests/test_imports.py, and tests/test_twin_<venue>.py: a bare client that rebuilds
    the books and compares them with `twin.book` and `Venue.books`.
"""

import json
import os
import subprocess
import sys
import threading
from urllib.parse import urlencode, urlsplit

from ..errors import HostError

START_TIMEOUT_S = 60         # 2,048 symbols are built in some 15 s
STOP_TIMEOUT_S = 10


class Child:
    """A twin in a process of its own; ends with close() or with us. `info`: what its first line says."""

    def __init__(self, args):
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        path = os.pathsep.join(filter(None, (os.path.dirname(package), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "feeder.twin.command", "--parent", *map(str, args)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, start_new_session=True,      # Ctrl-C is for the parent, who then ends us in order
            env=dict(os.environ, PYTHONPATH=path))
        guard = threading.Timer(START_TIMEOUT_S, self.process.kill)
        guard.start()
        try:
            line = self.process.stdout.readline()
        except BaseException:                                    # Ctrl-C while it starts
            self.close()
            raise
        finally:
            guard.cancel()
            guard.join()
        if not line.startswith(b"{"):
            self.close()
            raise HostError(f"the venue twin did not start: exit code {self.process.returncode}, it said {line!r}; "
                            f"arguments {list(args)}")
        hello = json.loads(line)
        self.info, self.seed, self.pid = hello["venue"], hello["seed"], hello["pid"]

    def ask(self, venue, what, **parameters):
        """An admin request, blocking: ask("binance_spot", "book", symbol="BTCUSDT"). HostError when it is refused."""
        return ask(self.info[venue]["rest_url"], what, **parameters)

    def close(self):
        """End it; return its exit code."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def spawn(args=()):
    """Start `feeder venue ARGS` as a child and wait until it listens."""
    return Child(args)


def ask(rest_url, what, **parameters):
    """One admin request to a running twin, blocking."""
    import http.client                   # here: 13 ms that who only starts a twin need not wait for
    connection = http.client.HTTPConnection(urlsplit(rest_url).netloc, timeout=STOP_TIMEOUT_S)
    try:
        connection.request("GET", f"/twin/{what}?{urlencode(parameters)}", headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
    except OSError as error:
        raise HostError(f"the venue twin at {rest_url} does not answer /twin/{what}: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise HostError(f"the venue twin refused /twin/{what} {parameters}: {body.decode(errors='replace')}")
    return json.loads(body)
