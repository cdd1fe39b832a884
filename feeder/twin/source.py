"""Where a venue's messages come from: the synthetic market, or a recording. Both look the same to the server.

    start(now_ns)                  the clock of the source begins
    due_ns                         steady time of the next message; None before start, when paused, at the end
    advance(now_ns, now_ms, publish)     call publish(symbol, kind, item) for everything due, in order
    text(kind, symbol, item, now_ms)     an item as JSON text, of venues whose channels take it as it is
    depth(symbol, limit, now_ms)   the REST answer; None: it is not known yet, ask again (a recording waits for its own)
    book(symbol)                   the true book, (last update id, bids, asks) as decimal text, best first
    flush(now_ms, publish)         publish what is pending, so that what was sent adds up to the true books
    pause(now_ns), resume(now_ns)

Machines: the time is told. The recording reads its file, which it is given open.
"""

import gzip
import json
from collections import deque
from urllib.parse import parse_qs, urlsplit

from ..errors import CaptureError
from .dialect import Words
from .market import AGGREGATE, BBO, DEPTH, TRADE, Market

SECOND_NS = 10 ** 9
BURST_S = 0.05               # what was missed is made up in bites of so many seconds' worth,
FORGIVE_S = 1.0              # and given up beyond this: a rate the host cannot keep must not pile up
LEAST_BURST = 50
REPLAY_DELAY_NS = SECOND_NS // 2     # after the first subscription, so that the other ones are not late
REPLAY_BURST = 500           # messages of a recording in one bite
MAX_EARLY_DIFFS = 10_000     # kept of a recording until its REST answer comes
REPLAY_HOLD_NS = 2 * SECOND_NS       # at full speed, how long a recorded REST answer waits to be asked for


class Pacer:
    """Absolute deadlines for `rate` messages a second: message n is due at start + n / rate, whatever came before."""

    def __init__(self, rate):
        self.rate = rate
        self.sent = 0                # since the start, forgiven ones included
        self.forgiven = 0
        self.behind_ns_max = 0
        self._start_ns = None
        self._paused_ns = None

    def start(self, now_ns):
        self._start_ns = now_ns

    @property
    def due_ns(self):
        if self._start_ns is None or self._paused_ns is not None:
            return None
        return self._start_ns + int((self.sent + 1) * SECOND_NS / self.rate)

    def owed(self, now_ns):
        """How many to send now."""
        if self.due_ns is None:
            return 0
        self.behind_ns_max = max(self.behind_ns_max, now_ns - self.due_ns)
        owed = int((now_ns - self._start_ns) * self.rate / SECOND_NS) - self.sent
        if owed > FORGIVE_S * self.rate + LEAST_BURST:
            excess = owed - int(BURST_S * self.rate)
            self.forgiven += excess
            self.sent += excess
            owed -= excess
        return min(owed, max(int(BURST_S * self.rate), LEAST_BURST))

    def pause(self, now_ns):
        if self._paused_ns is None:
            self._paused_ns = now_ns

    def resume(self, now_ns):
        if self._paused_ns is not None:
            if self._start_ns is not None:
                self._start_ns += now_ns - self._paused_ns
            self._paused_ns = None


class Synthetic:
    """A market of our own at `rate` messages a second."""

    waits_for_readers = False

    def __init__(self, dialect, symbols, seed, rate, levels=None):
        self.dialect = dialect
        self.specs = dialect.specs(symbols)
        self.market = Market(self.specs, f"{seed} {dialect.name}", levels or dialect.level_count, dialect.contiguous)
        self.listings = self.market.listings
        for listing in self.listings.values():       # leave the first moment behind, so that it is stale for everybody
            listing.turn(0)
            listing.flush(0)
        self.words = {symbol: dialect.words(listing.spec) for symbol, listing in self.listings.items()}
        self._makers = dialect.makers()
        self.pacer = Pacer(rate)
        self.start, self.pause, self.resume = self.pacer.start, self.pacer.pause, self.pacer.resume

    @property
    def due_ns(self):
        return self.pacer.due_ns

    def advance(self, now_ns, now_ms, publish):
        owed = self.pacer.owed(now_ns)
        step, uncounted, sent = self.market.step, self.dialect.uncounted, 0
        while sent < owed:
            for event in step(now_ms):
                kind = event[0]
                publish(event[1].spec.symbol, kind, event)
                sent += kind is not uncounted
        self.pacer.sent += sent

    def text(self, kind, symbol, event, now_ms):
        return self._makers[kind](event, self.words[symbol], now_ms)

    def depth(self, symbol, limit, now_ms):
        return self._depth(self.listings[symbol], limit, now_ms)

    def stale_depth(self, symbol, limit, now_ms):
        return self._depth(self.listings[symbol].rebuilt(), limit, now_ms)

    def _depth(self, listing, limit, now_ms):
        words = self.words[listing.spec.symbol]
        return self.dialect.depth_text(listing.update_id, words.levels(listing.bids.levels(limit)),
                                       words.levels(listing.asks.levels(limit)), now_ms)

    def book(self, symbol):
        listing = self.listings[symbol]
        return listing.update_id, *self.spelled(symbol, listing.bids.levels(), listing.asks.levels())

    def spelled(self, symbol, *sides):
        """Sides as plain decimal text, whatever the venue's own spelling."""
        words = Words(self.listings[symbol].spec)
        return tuple(words.pairs(side) for side in sides)

    def flush(self, now_ms, publish):
        for event in self.market.flush(now_ms):
            publish(event[1].spec.symbol, DEPTH, event)

    def status(self):
        return {"source": "synthetic", "rate": self.pacer.rate, "messages": self.pacer.sent - self.pacer.forgiven,
                "forgiven": self.pacer.forgiven, "behind_ms_max": self.pacer.behind_ns_max // 10 ** 6}

    def close(self):
        pass


class Recorded:
    """A recording (JSON lines, perhaps gzip, keys t, conn, kind, dir, raw) at `speed` times its pace; None: at once.

    Only the records of this venue's hosts are taken. The true book is kept by the plainest means: dicts of text,
    from the recorded REST answer on. It serves the requests that come after the recorded answer was given out.
    At full speed the recording halts at a REST answer until somebody asked for it, as its recorder had.
    """

    waits_for_readers = True

    def __init__(self, dialect, path, speed=1.0):
        self.dialect = dialect
        self.path = path
        self.speed = speed
        self.books = {}                # symbol -> [last id, {bid text: quantity text}, {ask ..}]
        self._answers = {}             # symbol -> recorded REST answer, until a diff made it old
        self.messages = 0
        self.skipped = 0               # records of channels nobody can subscribe to here
        self.behind_ns_max = 0
        self._early = {}               # symbol -> diffs before its answer
        self._wanted = set()           # symbols whose answer somebody waits for
        self._held_ns = None           # since when the next record, a REST answer, waits
        self.specs, self._first_ns = self._survey()
        self._lines = self._records()
        self._next = next(self._lines, None)
        self._start_ns = self._paused_ns = None

    def _survey(self):
        """Read once through: the symbols with their finest ticks, and the first time."""
        steps, first_ns = {}, None
        for record in self._records():
            if first_ns is None:
                first_ns = record[0]
            symbol, kind, item = record[1:]
            if kind != "rest" and kind != DEPTH:
                continue
            answer = json.loads(item)
            step = steps.setdefault(symbol, [0, 0])
            for level in answer.get("b", answer.get("bids"))[:50] + answer.get("a", answer.get("asks"))[:50]:
                for at in (0, 1):
                    step[at] = max(step[at], len(level[at].partition(".")[2]))
        if not steps:
            raise CaptureError(f"{self.path}: holds no diffs and no REST depth of {self.dialect.name}")
        return [self._spec(symbol, *decimals) for symbol, decimals in sorted(steps.items())], first_ns

    def _spec(self, symbol, price_decimals, lot_decimals):
        steps = [f"{0:.{decimals}f}"[:-1] + "1" for decimals in (price_decimals, lot_decimals)]
        return self.dialect.spec(symbol, "1", steps[0], steps[1], steps[0], steps[1])

    def _records(self):
        """(time, symbol, kind or "rest", data text) of what this venue can serve."""
        opener = gzip.open if self.path.endswith(".gz") else open
        kinds = {TRADE, AGGREGATE, BBO, DEPTH}
        last_ns = 0
        try:
            with opener(self.path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    try:
                        record = json.loads(line)
                        url, raw = urlsplit(record["conn"]), record["raw"]
                        last_ns = record["t"] or last_ns
                        if record["dir"] != "in" or venue_of(url.hostname) != self.dialect.name:
                            continue
                        if record["kind"] == "rest":
                            if url.path.endswith("/depth"):
                                yield last_ns, parse_qs(url.query)["symbol"][0], "rest", raw
                            continue
                        if not raw.startswith('{"stream":"'):
                            continue
                        stream, _, data = raw[11:-1].partition('","data":')
                        symbol, _, kind = stream.partition("@")
                        kind = kind.partition("@")[0]
                    except (ValueError, KeyError, TypeError) as error:
                        raise CaptureError(f"{self.path}, line {number}: not a recorded message: {error!r}") from None
                    if kind in kinds:
                        yield last_ns, symbol.upper(), kind, data
        except (OSError, EOFError) as error:
            raise CaptureError(f"{self.path}: cannot be read: {error}") from None

    def start(self, now_ns):
        self._start_ns = now_ns + REPLAY_DELAY_NS

    @property
    def due_ns(self):
        if self._start_ns is None or self._paused_ns is not None or self._next is None:
            return None
        if self.speed is None:
            return self._start_ns
        return self._start_ns + int((self._next[0] - self._first_ns) / self.speed)

    def advance(self, now_ns, now_ms, publish):
        for _ in range(REPLAY_BURST):
            due_ns = self.due_ns
            if due_ns is None or due_ns > now_ns:
                return
            if self.speed is not None:
                self.behind_ns_max = max(self.behind_ns_max, now_ns - due_ns)
            _, symbol, kind, data = self._next
            if kind == "rest":
                if self.speed is None and symbol not in self._wanted:
                    self._held_ns = self._held_ns or now_ns
                    if now_ns - self._held_ns < REPLAY_HOLD_NS:
                        return
                self._held_ns = None
                self._answers[symbol] = data
                self._take_snapshot(symbol, data)
                self._next = next(self._lines, None)
                return                   # who waits for it gets it before the next diff makes it old
            if kind == DEPTH:
                self._take_diff(symbol, data)
            self.messages += 1
            publish(symbol, kind, data)
            self._next = next(self._lines, None)

    def text(self, kind, symbol, data, now_ms):
        return data

    def _take_snapshot(self, symbol, data):
        answer = json.loads(data)
        self.books[symbol] = [answer["lastUpdateId"], dict(answer["bids"]), dict(answer["asks"])]
        for diff in self._early.pop(symbol, ()):                 # came before the answer, may be newer than it
            self._apply(symbol, diff)

    def _take_diff(self, symbol, data):
        diff = json.loads(data)
        if symbol not in self.books:
            self._early.setdefault(symbol, deque(maxlen=MAX_EARLY_DIFFS)).append(diff)
        elif diff["u"] > self.books[symbol][0]:
            self._answers.pop(symbol, None)
            self._apply(symbol, diff)

    def _apply(self, symbol, diff):
        book = self.books[symbol]
        if diff["u"] <= book[0]:
            return
        book[0] = diff["u"]
        for side, changes in ((book[1], diff["b"]), (book[2], diff["a"])):
            for price, quantity in changes:
                if quantity.strip("0.") == "":
                    side.pop(price, None)
                else:
                    side[price] = quantity

    def depth(self, symbol, limit, now_ms):
        if symbol in self._answers:
            return self._answers[symbol]
        if symbol not in self.books:
            self._wanted.add(symbol)
            return None
        last_id, bids, asks = self.book(symbol)
        words = [",".join(f'["{price}","{quantity}"]' for price, quantity in side[:limit]) for side in (bids, asks)]
        return self.dialect.depth_text(last_id, *words, now_ms)

    def stale_depth(self, symbol, limit, now_ms):
        return self.dialect.depth_text(1, "", "", now_ms)

    def book(self, symbol):
        last_id, bids, asks = self.books.get(symbol, (0, {}, {}))
        return (last_id, [[price, bids[price]] for price in sorted(bids, key=float, reverse=True)],
                [[price, asks[price]] for price in sorted(asks, key=float)])

    def flush(self, now_ms, publish):
        pass

    def pause(self, now_ns):
        self._paused_ns = self._paused_ns or now_ns

    def resume(self, now_ns):
        if self._paused_ns is not None and self._start_ns is not None:
            self._start_ns += now_ns - self._paused_ns
        self._paused_ns = None

    def status(self):
        return {"source": "recording", "speed": self.speed, "messages": self.messages, "finished": self._next is None,
                "behind_ms_max": self.behind_ns_max // 10 ** 6}

    def close(self):
        self._lines.close()


def venue_of(host):
    """Which of our venues a recorded address belongs to; None for any other."""
    if not host or "binance" not in host:
        return None
    if host.startswith("fstream.") or host.startswith("fapi."):
        return "binance_usdm"
    return None if host.startswith(("dstream.", "dapi.", "eapi.", "nbstream.")) else "binance_spot"


def venues_in(path):
    """The venues a recording holds, by its first records; CaptureError when none is ours."""
    found, hosts = [], set()
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                host = urlsplit(json.loads(line)["conn"]).hostname
                if host not in hosts:
                    hosts.add(host)
                    if venue_of(host) and venue_of(host) not in found:
                        found.append(venue_of(host))
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CaptureError(f"{path}: cannot be read as a recording: {error!r}") from None
    if not found:
        raise CaptureError(f"{path}: none of its hosts ({', '.join(sorted(map(str, hosts)))}) is of a supported venue: "
                           "binance_spot, binance_usdm")
    return found
