"""What a venue is to the rest of the feeder. A venue is one module that fulfils this, and one line in __init__.

In:   payloads of the venue's frames and REST answers.   Out: calls on a sink (message.py), Notices.

A venue object is a machine for one process: it decodes, names its own endpoints and texts, and knows its rule
of continuity. It opens nothing, waits for nothing and keeps no book; recovery.py and ingest.py do that.

The base class has what all venues share: finding instruments, scaling decimal text exactly (and widening an
instrument's decimals when the venue shows more of them), and counting what came in.
"""

from collections import Counter, namedtuple

from feeder import fixed
from feeder.errors import NumberError, PrecisionError, RangeError, VenueError
from feeder.instrument import SYMBOL_BYTES, WIRE_EXPONENT, Instrument

MAX_COUNTED_KINDS = 64
MAX_SHOWN = 200                # characters of a payload in an error

# What a venue tells about the connection rather than the market.
ACK, ERROR, SHUTDOWN = "ack", "error", "shutdown"
Notice = namedtuple("Notice", "kind request_id text")

# One connection's worth of subscriptions: `path` behind the venue's WebSocket URL, the streams asked for there.
Line = namedtuple("Line", "path streams")

# One REST request: `path` behind the venue's REST URL and what it costs of the venue's budget.
Request = namedtuple("Request", "path weight")

# What the configuration has to know of a venue to judge and plan it; from the venues' documents.
#   routes: channels that may share a connection      snapshot_weights: (up to this many levels, request weight)
#   symbol: pattern of a symbol                       defaults: of the venue's configuration keys
VenueFacts = namedtuple("VenueFacts", "routes depth_intervals_ms snapshot_limits snapshot_weights symbol defaults")

# What a message's place in the sequence means for a book at `sequence`.
OLD, NEXT, GAP = "old", "next", "gap"


class Instruments:
    """All instruments of this process, by (venue, symbol).

    Ids are dense from 0, in the order of add(); or `ids`, {(venue, symbol): id}, has them given out beforehand over
    all processes, of which this one has a part.
    """

    def __init__(self, limit=2048, ids=None):
        self.limit = limit
        self.ids = ids
        self.all = []
        self.by_symbol = {}

    def add(self, venue, symbol, **more):
        if len(self.all) >= self.limit:
            raise VenueError(f"{venue}: {symbol} would be instrument {len(self.all) + 1}, "
                             f"processing.max_symbols is {self.limit}")
        if not 0 < len(symbol.encode("utf-8", "replace")) <= SYMBOL_BYTES or not symbol.isprintable():
            raise VenueError(f"{venue}: symbol {symbol[:MAX_SHOWN]!r} is not 1 to {SYMBOL_BYTES} bytes of text")
        instrument_id = len(self.all) if self.ids is None else self.ids[venue, symbol]
        instrument = Instrument(instrument_id, venue, symbol, **more)
        self.all.append(instrument)
        self.by_symbol[venue, symbol] = instrument
        return instrument

    def find(self, venue, symbol):
        return self.by_symbol.get((venue, symbol))

    def __iter__(self):
        return iter(self.all)

    def __len__(self):
        return len(self.all)


class Venue:
    """Base of all venues. Subclasses fill in what raises NotImplementedError.

    Args: sink (message.py); instruments; discover: unknown symbols become instruments (replay) instead of being
    counted (live, where only configured ones are wanted); depth: what discovered instruments publish.
    """

    name = None
    facts = None                      # VenueFacts; None for a dialect that is for replay only

    def __init__(self, sink, instruments, discover=False, depth=20):
        self.sink = sink
        self.instruments = instruments
        self.discover = discover
        self.depth = depth
        self.likely = 0               # messages the learned patterns took
        self.unlikely = 0             # messages json took
        self.kinds = Counter()        # of the unlikely path: what they were
        self.not_market = 0           # trades that are none: insurance fund, X other than MARKET

    # -- what a venue provides -------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, url):
        """Return True if a connection or request of this URL is this venue's; recordings name theirs so."""
        raise NotImplementedError

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection):
        """Return the Lines that carry `channels` ("depth", "trade", "bbo") of `symbols`."""
        raise NotImplementedError

    def subscribe(self, streams, request_id):
        """Return the texts to send, in order, each within the venue's limits; the ids count up from request_id."""
        raise NotImplementedError

    def symbol_of(self, stream):
        """Return the symbol a stream name of `lines` is about."""
        raise NotImplementedError

    def decode(self, payload, recv_ns):
        """Decode one WebSocket payload (bytes) into calls on the sink; return a Notice or None.

        Raises VenueError, NumberError; nothing has been called on the sink then but perhaps `define` and `stale`.
        """
        raise NotImplementedError

    def instruments_request(self, symbols):
        """Return the Request for the instrument list."""
        raise NotImplementedError

    def decode_instruments(self, body):
        """Return {symbol: (tick text, lot text)} of an instrument list."""
        raise NotImplementedError

    def snapshot_request(self, instrument, levels):
        """Return the Request for one book snapshot."""
        raise NotImplementedError

    def decode_snapshot(self, instrument, body, recv_ns):
        """Decode one REST book into `sink.snapshot`."""
        raise NotImplementedError

    def snapshot_symbol(self, url):
        """Return the symbol whose book a recorded REST request asked for, None if it is no such request."""
        raise NotImplementedError

    @staticmethod
    def follows(sequence, bridged, first, last, previous):
        """Return OLD, NEXT or GAP for an increment on a book at `sequence`; `bridged`: not the first after a snapshot."""
        raise NotImplementedError

    # -- what all share --------------------------------------------------------------------------------------

    def fault(self, what, payload):
        shown = payload[:MAX_SHOWN]
        return VenueError(f"{self.name}: {what}: {shown!r}{'…' if len(payload) > MAX_SHOWN else ''}")

    def count(self, kind):
        if kind not in self.kinds and len(self.kinds) >= MAX_COUNTED_KINDS:
            kind = "other"
        self.kinds[kind] += 1

    def instrument(self, symbol):
        """Return the instrument, or None for one that is not ours."""
        instrument = self.instruments.find(self.name, symbol)
        if instrument is None and self.discover:
            instrument = self.instruments.add(self.name, symbol, depth=self.depth)
            self.sink.define(instrument, 1, 1)
        elif instrument is None:
            self.count("unknown symbol")
        return instrument

    def scaled(self, instrument, texts, what):
        """Return the ints of all of a message's texts, `what` being "price" or "quantity".

        They are at the instrument's decimals after the call: as many as are printed, up to 8, so that the likely path has
        no zeros to drop. The instrument is widened only where all texts can be read so.
        """
        printed = max((len(text.partition(".")[2]) for text in texts), default=0)
        if printed > fixed.WIRE_DECIMALS:
            printed = 0
        known = getattr(instrument, what + "_decimals")
        decimals = max(known, printed)
        try:
            try:
                numbers = [fixed.parse(text, decimals) for text in texts]
            except PrecisionError as error:
                decimals = max(map(fixed.decimals_of, texts))
                if decimals > fixed.MAX_DECIMALS:
                    raise error
                numbers = [fixed.parse(text, decimals) for text in texts]
        except (PrecisionError, RangeError) as error:
            self.sink.stale(instrument, "precision" if isinstance(error, PrecisionError) else "range", 0)
            needed = max(printed, *map(fixed.decimals_of, texts))
            if needed < known:                # one odd message had made the decimals too many for all others
                setattr(instrument, what + "_exponent", WIRE_EXPONENT)
                self.rescale(instrument, what, needed, 0)
            raise
        if numbers:
            if min(numbers) < 0:
                raise NumberError(f"{self.name} {instrument.symbol}: negative {what} {min(numbers)}")
            if decimals > known:
                self.widen(instrument, what, decimals)
            if max(numbers) * getattr(instrument, what + "_factor") > fixed.INT64_MAX:
                # Too large at -8 (OKX has quantities of 13 whole digits): keep no more decimals than it prints.
                setattr(instrument, what + "_exponent", -decimals)
                self.widen(instrument, what, decimals)
        return numbers

    def widen(self, instrument, what, decimals):
        """Give the instrument more decimals and tell everybody behind us what to multiply by."""
        self.rescale(instrument, what, decimals, 10 ** (decimals - getattr(instrument, what + "_decimals")))

    def rescale(self, instrument, what, decimals, scale):
        setattr(instrument, what + "_decimals", decimals)
        instrument.rescale()
        self.forget(instrument)
        self.sink.define(instrument, *((scale, 1) if what == "price" else (1, scale)))

    def forget(self, instrument):
        """Drop learned shapes of an instrument whose decimals changed."""
