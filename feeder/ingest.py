"""From venues to the pipeline: a venue's connections, its books, its instrument list, all within its budgets.

    Feed (a venue) ─┬─ LineConnection (line.py) ... one WebSocket each
                    ├─ SnapshotQueue ... REST books: spaced by weight, few at once, retried, 429 obeyed; or
                    └─ ResubscribeQueue ... books on the stream: unsubscribe and subscribe, together, with backoff

One Feed has one budget of connects and one of request weight; connects to one host are spaced over all Feeds of the
process. What a lost connection carried goes STALE at once and alone: the books whose increments were on it, not those of
which it had only trades.
"""

import logging
import random
from collections import deque
from functools import partial
from itertools import product
from urllib.parse import urlsplit

from feeder import clock, listings
from feeder.config import SNAPSHOT_BURST
from feeder.errors import FeederError, VenueError
from feeder.fixed import MAX_DECIMALS, WIRE_DECIMALS, decimals_of
from feeder.line import LineConnection
from feeder.log import Limited, timestamp
from feeder.message import LIVE
from feeder.net import ConnectBudget, Fetcher, SocketOptions, proxy_for, tls_context
from feeder.venue.contract import IMAGE, REST

log = logging.getLogger("feeder.ingest")

CONNECT_WINDOW_NS = 300 * clock.SECOND
SNAPSHOTS_AT_ONCE = 2
SNAPSHOT_RETRY_FIRST_NS, SNAPSHOT_RETRY_CAP_NS = 250 * clock.MILLISECOND, 3 * clock.SECOND
INSTRUMENTS_RETRY_NS = 30 * clock.SECOND
MAX_RETRY_AFTER_S = 300
MAX_LISTED = 50_000                               # instruments of a venue, over all pages
GATHER_NS = 20 * clock.MILLISECOND                # books that break together are asked for together
IMAGE_PATIENCE_NS = 2 * clock.SECOND              # the next image cures; a quiet market's is asked for
RESUBSCRIBE_FIRST_NS, RESUBSCRIBE_CAP_NS = 500 * clock.MILLISECOND, 30 * clock.SECOND
RESUBSCRIBE_FORGIVEN_NS = 60 * clock.SECOND       # a book that broke longer ago starts with no pause again
RESUBSCRIBE_DEADLINE_NS = 10 * clock.SECOND       # for the snapshot to come
RESUBSCRIBE_TRIES = 3                             # then the whole connection is made anew
ECHO_NS = 2 * clock.SECOND                        # after a connection was replaced, for the late ones of two
DOUBT_NS = 5 * clock.SECOND                       # for a book to be seen on the new one


class SnapshotQueue:
    """Orders of REST books, served in order within a weight budget.

    A bucket of a quarter of the minute's weight, refilled at three quarters of it a minute: no window of 60 s spends
    more than the budget, and a few instruments need not wait at all.
    """

    def __init__(self, feed):
        self.feed = feed
        self.per_minute = feed.config.snapshot_weight_per_minute
        self.capacity = SNAPSHOT_BURST * self.per_minute
        self.refill = (1 - SNAPSHOT_BURST) * self.per_minute / 60e9       # weight a ns
        self.level = self.capacity
        self.filled_ns = clock.steady_ns()
        self.waiting = deque()
        self.running = 0
        self.timer = None
        self.pause_until_ns = 0
        self.requested = self.failed = 0
        self.fetcher = feed.fetcher

    def order(self, instrument, attempt):
        """Fetch the book of an instrument; repeated attempts wait, so that a venue that lags is not flooded."""
        if attempt:
            ceiling = min(SNAPSHOT_RETRY_CAP_NS, SNAPSHOT_RETRY_FIRST_NS << min(attempt - 1, 10))
            pause_ns = self.feed.random.randrange(ceiling // 2, ceiling + 1)
            self.feed.loop.call_after(pause_ns, lambda: self.put(instrument))
        else:
            self.put(instrument)

    def put(self, instrument):
        if instrument not in self.waiting:        # one book will do for two lines
            self.waiting.append(instrument)
        self.serve()

    def serve(self):
        if self.feed.closing:
            return
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        while self.waiting and self.running < SNAPSHOTS_AT_ONCE:
            now_ns = clock.steady_ns()
            self.level = min(self.capacity, self.level + (now_ns - self.filled_ns) * self.refill)
            self.filled_ns = now_ns
            instrument = self.waiting[0]
            legs = self.feed.recoveries
            if len(legs) > 1 and not any(recovery.link(instrument).waiting for recovery in legs):
                self.waiting.popleft()            # the answer to the other line's order served it, too
                continue
            request = self.feed.venue.snapshot_request(instrument, self.feed.config.snapshot_limit)
            weight = min(request.weight, self.capacity)       # a budget below one request still serves, slowly
            wait_ns = max(self.pause_until_ns - now_ns,
                          int((weight - self.level) / self.refill) if weight > self.level else 0)
            if wait_ns > 0:
                self.timer = self.feed.loop.call_after(wait_ns + 1, self.serve)
                return
            self.level -= weight
            self.waiting.popleft()
            self.running += 1
            self.requested += 1
            self.fetcher.get(self.feed.config.rest_url.rstrip("/") + request.path,
                             lambda answer, instrument=instrument: self.done(instrument, answer))

    def done(self, instrument, answer):
        feed = self.feed
        self.running -= 1
        if answer.error is None and answer.status == 200:
            feed.recovery.line = None
            error = feed.pipeline.decode_snapshot(feed.venue, instrument, answer.body, answer.recv_ns)
            feed.flush()
        else:
            error = answer.error or f"HTTP {answer.status} {answer.body[:120]!r}"
            feed.recovery.snapshot_failed(instrument)
            self.obey(answer)
        if error is not None:
            self.failed += 1
            feed.last_error = f"snapshot of {instrument.symbol}: {error}"
            feed.limited.warning(("snapshot", instrument.symbol), "%s: %s", feed.name, feed.last_error)
            for recovery in feed.recoveries:
                link = recovery.link(instrument)
                if link.flowing and not link.waiting:     # else the next increment orders, after a reconnect
                    recovery.order(instrument, link)
        self.serve()

    def obey(self, answer):
        """Ask for nothing while the venue wants to be left alone."""
        if answer.status in (418, 429):
            self.pause_until_ns = clock.steady_ns() + retry_after_ns(answer.headers)


class ResubscribeQueue:
    """Orders of books that come on the stream. Has what SnapshotQueue has.

    A book that keeps breaking is asked for ever more slowly; its first break of a minute costs no pause. Where
    no book comes in RESUBSCRIBE_TRIES tries the connection is made anew.
    """

    def __init__(self, feed):
        self.feed = feed
        self.waiting = {}             # instrument id -> instrument, of the next round
        self.history = {}             # instrument id -> (when it was last ordered, how often in a row)
        self.timer = None
        self.requested = self.failed = 0

    def order(self, instrument, attempt):
        feed, now_ns = self.feed, clock.steady_ns()
        last_ns, count = self.history.get(instrument.instrument_id, (0, 0))
        count = count + 1 if last_ns and now_ns - last_ns < RESUBSCRIBE_FORGIVEN_NS else 0
        self.history[instrument.instrument_id] = now_ns, count
        pause_ns = IMAGE_PATIENCE_NS if feed.venue.book == IMAGE else 0
        if count:
            ceiling = min(RESUBSCRIBE_CAP_NS, RESUBSCRIBE_FIRST_NS << min(count - 1, 10))
            pause_ns += feed.random.randrange(ceiling // 2, ceiling + 1)
        feed.loop.call_after(pause_ns, lambda: self.put(instrument))

    def put(self, instrument):
        self.waiting[instrument.instrument_id] = instrument
        if self.timer is None:
            self.timer = self.feed.loop.call_after(GATHER_NS, self.serve)

    def serve(self):
        self.timer = None
        feed = self.feed
        if feed.closing:
            return
        by_line = {}
        for instrument, leg in product(self.waiting.values(), range(len(feed.recoveries))):
            link = feed.recoveries[leg].link(instrument)
            line = next((line for line in feed.lines if line.leg == leg and instrument in line.books), None)
            if link.state == LIVE or not link.waiting:
                continue
            if line is None or not line.connected or line.is_new(instrument):
                link.waiting = False      # a connection that is being made brings it, unasked
                continue
            by_line.setdefault(line, []).append(instrument)
        self.waiting.clear()
        for line, instruments in by_line.items():
            symbols = {instrument.symbol for instrument in instruments}
            self.requested += len(instruments)
            line.resubscribe([stream for stream in line.line.streams
                              if stream in feed.depth_streams and feed.venue.symbol_of(stream) in symbols])
            feed.loop.call_after(RESUBSCRIBE_DEADLINE_NS, partial(self.check, line, line.connects, instruments))

    def check(self, line, count, instruments):
        """Whether the books came that were asked for."""
        feed = self.feed
        if feed.closing or not line.connected or line.connects != count:
            return
        recovery = line.recovery
        for instrument in instruments:
            link = recovery.link(instrument)
            if link.state == LIVE or not link.waiting:
                continue
            self.failed += 1
            feed.last_error = f"{instrument.symbol}: no book came for the new subscription"
            feed.limited.warning(("book", instrument.symbol), "%s: %s", feed.name, feed.last_error)
            if link.attempts >= RESUBSCRIBE_TRIES:
                line.lose(VenueError(f"{feed.last_error}, {link.attempts} times"))
                return
            recovery.snapshot_failed(instrument)
            recovery.order(instrument, link)

    def obey(self, answer):
        """REST has nothing to do with it."""


def retry_after_ns(headers):
    """Return how long a 429 or 418 asks us to wait; a second where it does not say."""
    text = headers.get("retry-after", "")
    is_count = text.isascii() and text.isdigit() and len(text) < 9        # isdigit alone takes "²", int() does not
    return min(int(text), MAX_RETRY_AFTER_S) * clock.SECOND if is_count else clock.SECOND


class Hosts:
    """Spaces the connects to each host and port, whichever venue they are for. Args: sharers: processes that do so, too."""

    def __init__(self, sharers=1):
        self.sharers = sharers
        self.next_ns = {}

    def acquire_at(self, host, at_ns, spacing_ns):
        """Reserve a connect at `at_ns` or later; return when."""
        at_ns = max(at_ns, self.next_ns.get(host, 0))
        self.next_ns[host] = at_ns + spacing_ns * self.sharers
        return at_ns


class Feed:
    """One venue's whole input.

    Args: loop; pipeline; config (a VenueConfig); names {(venue, symbol): common name}; options (SocketOptions of its
    connections); hosts (Hosts), shared by all Feeds of a process.
    """

    def __init__(self, loop, pipeline, config, names, rng=None, options=None, hosts=None):
        self.loop = loop
        self.pipeline = pipeline
        self.config = config
        self.name = config.name
        self.random = rng or random.Random()
        self.options = options or SocketOptions(recv_buffer_bytes=config.recv_buffer_bytes)
        self.limited = Limited(log, 10)
        self.closing = False
        self.flush = pipeline.sink.flush
        self.disconnects = self.silences = self.venue_errors = self.unacknowledged = self.stale_books = 0
        self.rollovers = self.overlaps = 0
        self.retired_connects = self.retired_bytes = 0
        self.retired = deque(maxlen=64)          # streams that say goodbye
        self.instruments_date = ""               # of ticks and lots; empty: not known
        self.refused = {}                        # symbol -> the venue's words
        self.hosts = hosts or Hosts()
        self.last_error = ""
        self.request_id = 1
        self.unknown_symbols = []
        self.silent = {}              # symbol -> instrument that let its deadline pass
        self.venue = pipeline.venue(config.name, lines=config.lines)
        self.recovery = pipeline.recoveries[config.name]
        self.recoveries = [self.recovery] if config.lines == 1 else self.recovery.recoveries     # one a leg
        self.instruments = [pipeline.define(self.venue, symbol, name=names.get((config.name, symbol)),
                                            depth=config.published_depth) for symbol in config.symbols]
        depth_lines = self.venue.lines(config.symbols, ["depth"], config.depth_interval_ms, 1 << 30,
                                       config.snapshot_limit)
        self.depth_streams = {stream for line in depth_lines for stream in line.streams}
        self.connect_budget = ConnectBudget(config.connects_per_5_minutes, CONNECT_WINDOW_NS)
        secure = config.websocket_url.startswith("wss:") or config.rest_url.startswith("https:")
        self.tls = tls_context(config.ca_file or None, config.verify_tls) if secure else None
        self.proxy = proxy_for(config.websocket_url, config.proxy or None)
        self.fetcher = Fetcher(loop, SNAPSHOTS_AT_ONCE, tls=self.tls,
                               proxy=proxy_for(config.rest_url, config.proxy or None))
        self.snapshots = SnapshotQueue(self) if self.venue.book == REST else ResubscribeQueue(self)
        self.lines = [LineConnection(self, number, line, leg) for leg in range(len(self.recoveries))
                      for number, line in enumerate(self.venue.lines(
                          config.symbols, config.channels, config.depth_interval_ms, config.streams_per_connection,
                          config.snapshot_limit))]

    def start(self):
        if self.config.instruments_file:
            self.read_instruments()
        self.fetch_instruments()
        for line in self.lines:
            line.start()

    def carried(self, streams):
        """Return the instruments that these streams are about."""
        symbols = set(map(self.venue.symbol_of, streams))
        return [instrument for instrument in self.instruments if instrument.symbol in symbols]

    # -- connecting ------------------------------------------------------------------------------------------

    def may_connect_at(self, now_ns):
        """Reserve a connect; return when it may start."""
        return self.hosts.acquire_at(urlsplit(self.config.websocket_url).netloc, self.connect_budget.acquire_at(now_ns),
                                     self.venue.facts.connect_every_ms * clock.MILLISECOND)

    def next_request_id(self, stream_count):
        first, self.request_id = self.request_id, self.request_id + max(1, stream_count)
        return first

    def all_lines(self):
        for line in self.lines:
            yield line
            if line.successor is not None:
                yield line.successor

    def begin_overlap(self):
        """Two connections will bring the same for a while."""
        self.overlaps += 1
        if self.overlaps == 1:
            self.expect_echoes(True)

    def expect_echoes(self, expected):
        for recovery in self.recoveries:
            recovery.echoes(expected)

    def end_overlap(self, old, line):
        now_ns = clock.wall_ns()
        doubtful = line.recovery.settle(old, line, line.books, now_ns)
        self.line_changed(line, now_ns)

        def judge():
            for instrument in doubtful:
                if not self.closing and not line.recovery.lives_on(instrument, line):
                    line.recovery.resync(instrument, "gap", clock.wall_ns())
            self.flush()

        def silence():
            self.overlaps -= 1
            if not self.overlaps and not self.closing:
                self.expect_echoes(False)

        if doubtful:
            self.loop.call_after(DOUBT_NS, judge)
        self.loop.call_after(ECHO_NS, silence)

    # -- instruments -----------------------------------------------------------------------------------------

    def fetch_instruments(self):
        if self.closing:
            return
        waiting, known = deque(self.venue.instruments_requests(self.config.symbols)), {}

        def fetch():
            request = waiting[0]
            self.fetcher.get(self.config.rest_url.rstrip("/") + request.path, lambda answer: done(request, answer))

        def done(request, answer):
            if self.closing:
                return
            try:
                if answer.error is not None or answer.status != 200:
                    raise VenueError(answer.error or f"HTTP {answer.status}")
                known.update(self.venue.decode_instruments(answer.body))
                waiting.popleft()
                more = self.venue.more_instruments(request, answer.body)
                if more is not None and len(known) < MAX_LISTED:
                    waiting.appendleft(more)
            except FeederError as error:
                self.last_error = f"instrument list: {error}"
                log.warning("%s: no instrument list, ticks are learned from the data; asking again in %g s: %s",
                            self.name, INSTRUMENTS_RETRY_NS / clock.SECOND, error)
                self.snapshots.obey(answer)
                self.loop.call_after(INSTRUMENTS_RETRY_NS, self.fetch_instruments)
                return
            if waiting:
                fetch()
            else:
                self.on_instruments(known)

        fetch()

    def read_instruments(self):
        """What the venue said the last time, or somebody saved for us."""
        try:
            self.instruments_date, known = listings.read(self.config.instruments_file, self.name)
            self.take_listings(known)
        except FeederError as error:
            self.last_error = str(error)
            log.error("%s: %s", self.name, error)

    def take_listings(self, known):
        """Complete the definitions."""
        for instrument in self.instruments:
            if instrument.symbol in known:
                instrument.tick, instrument.lot, instrument.contract = known[instrument.symbol]
                for what, size in (("price", instrument.tick), ("quantity", instrument.lot)):
                    decimals = decimals_of(size) if size else 0
                    if max(WIRE_DECIMALS, getattr(instrument, what + "_decimals")) < decimals <= MAX_DECIMALS:
                        self.venue.widen(instrument, what, decimals)      # now, rather than when the first book comes
                self.recovery.define(instrument, 1, 1)

    def on_instruments(self, known):
        """Ticks and lots make definitions complete and find misspelt symbols; the feed runs without them, too."""
        self.take_listings(known)
        self.unknown_symbols = [each.symbol for each in self.instruments if each.symbol not in known]
        self.instruments_date = timestamp(clock.wall_ns())
        if self.config.instruments_file:
            try:
                listings.write(self.config.instruments_file, self.name, {
                    each.symbol: known[each.symbol] for each in self.instruments if each.symbol in known},
                    self.config.rest_url, clock.wall_ns())
            except FeederError as error:
                self.last_error = str(error)
                log.warning("%s: %s", self.name, error)
        if self.unknown_symbols:
            log.error("%s: the venue does not list %s; check the spelling in its configuration",
                      self.name, ", ".join(self.unknown_symbols))
        self.flush()

    # -- what is noticed -------------------------------------------------------------------------------------

    def check_first_data(self, line):
        """A venue acknowledges a symbol it does not know and stays silent; only a deadline finds that."""
        silent = [instrument for instrument in line.instruments if not self.has_data(instrument)]
        self.silent.update((instrument.symbol, instrument) for instrument in silent)
        if silent:
            log.error("%s: no data within %g s for %s: unknown to the venue, or not traded", line.name,
                      self.config.first_data_deadline_s, ", ".join(instrument.symbol for instrument in silent))

    def has_data(self, instrument):
        return self.pipeline.sink.seen(instrument) or self.recovery.link(instrument).flowing

    def not_fresh(self, instrument, recovery):
        """A book whose venue promises news was silent for too long."""
        self.stale_books += 1
        self.last_error = f"{instrument.symbol}: no update for {self.config.freshness_s:g} s"
        self.limited.warning(("fresh", instrument.symbol), "%s: %s", self.name, self.last_error)
        recovery.resync(instrument, "silent", clock.wall_ns())
        self.flush()

    def bad_message(self, error):
        self.pipeline.bad_messages[self.name] += 1
        self.last_error = str(error)
        self.limited.warning("bad message", "%s", error)

    def line_changed(self, line, recv_ns):
        self.pipeline.sink.venue_status(self.name, self.is_connected(), "none" if line.connected else "disconnect", recv_ns)
        self.flush()

    def is_connected(self):
        """Every stream has a connection; with two lines one of them will do."""
        missing = {line.number for line in self.lines} - {line.number for line in self.all_lines() if line.connected}
        return not missing

    def row(self):
        """What the report tells about this venue."""
        return {"venue": self.name, "lines": len(self.lines), "connected": sum(line.connected for line in self.lines),
                "connects": self.retired_connects + sum(line.connects for line in self.all_lines()),
                "disconnects": self.disconnects, "rollovers": self.rollovers, "stale_books": self.stale_books,
                "instruments_date": self.instruments_date, "unacknowledged": self.unacknowledged,
                "refused_symbols": dict(self.refused),
                "silences": self.silences, "bad_messages": self.pipeline.bad_messages[self.name],
                "venue_errors": self.venue_errors, "snapshots_requested": self.snapshots.requested,
                "snapshots_failed": self.snapshots.failed, "snapshots_waiting": len(self.snapshots.waiting),
                "unknown_symbols": self.unknown_symbols,
                "legs": [{"leg": leg.name, "connected": sum(line.connected for line in self.lines if line.leg == number),
                          "wins": leg.wins, "late": leg.late, "covered": leg.covered}
                         for number, leg in enumerate(getattr(self.recovery, "legs", ()))],
                "silent_symbols": [symbol for symbol, each in self.silent.items() if not self.has_data(each)],
                "last_error": self.last_error,
                "received_bytes": self.retired_bytes + sum(line.received_bytes for line in self.all_lines())}

    def close(self):
        self.closing = True
        for line in self.lines:
            line.close()
        for stream in self.retired:
            stream.abort()
        self.fetcher.close()
        self.limited.flush()
