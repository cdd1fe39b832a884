"""What a venue is to the rest of the feeder. A venue is one module that fulfils this, and one line in __init__.

In:   payloads of the venue's frames and REST answers.   Out: calls on a sink (message.py), Notices.

    Venue      one for a process: facts, endpoints, numbers, continuity; REST answers
    Session    one for a connection: its texts both ways, and what is known of that connection only

A venue whose messages explain themselves is its own session (Binance: not a call more a message). One that needs to
know what was said before on the same socket (channel numbers, a counter over the socket, a mirror of the book) returns
a Session of its own. Neither opens anything, waits for anything or reads a clock; recovery.py and ingest.py do that.

Where a book comes from is a fact, `VenueFacts.book`:

    REST     increments are joined to a book fetched by REST; a new one is fetched to resync
    STREAM   the book comes on the stream at subscription, and whenever the venue says so; unsubscribe and subscribe resync
    IMAGE    each message is the whole book; mirror.py makes increments of them, and the next one resyncs

The base class has what all venues share: finding instruments, scaling decimal text exactly (and widening an
instrument's decimals when the venue shows more of them), and counting what came in. docs/adding-a-venue.md leads
through it.
"""

import json
import re
from collections import Counter, namedtuple
from hashlib import blake2b

from feeder import fixed
from feeder.errors import NumberError, PrecisionError, RangeError, VenueError
from feeder.instrument import SYMBOL_BYTES, WIRE_EXPONENT, Instrument

MAX_COUNTED_KINDS = 64
MAX_SHOWN = 200                # characters of a payload in an error
INT64 = 1 << 63
MAX_TIME_NS = INT64 - 1
OWN_SEQUENCE_BITS = 40         # of a sequence we count ourselves; the session's number is above

CHANNELS = ("depth", "trade", "bbo")
REST, STREAM, IMAGE = "rest", "stream", "image"

# What a venue tells about the connection rather than the market:
#   ACK        what was asked for under the keys `request` (one, or a tuple of several) is granted
#   ERROR      what was asked for under that key is refused, or (None) something else is wrong; `text` in its own words
#   ALIVE      the socket lives, though no market data came: heartbeat, pong
#   REPLY      the same, and `text` has to be sent back at once
#   SHUTDOWN   this connection will end soon: open the next one first, then drop this one
ACK, ERROR, ALIVE, REPLY, SHUTDOWN = "ack", "error", "alive", "reply", "shutdown"
Notice = namedtuple("Notice", "kind request text")

# One connection's worth of subscriptions: `path` behind the venue's WebSocket URL, the streams asked for there.
Line = namedtuple("Line", "path streams")

# One text to send. `keys` {key: [stream, ...]}: what has to be acknowledged, and which streams that is about; keys are
# whatever the venue echoes (a request id, ("subscribe", channel, symbol)), {} where it acknowledges nothing.
Command = namedtuple("Command", "text keys")

# One REST request: `path` behind the venue's REST URL and what it costs of the venue's budget.
Request = namedtuple("Request", "path weight")

# What the client has to say to keep a connection: `text` every `every_s`.
Ping = namedtuple("Ping", "text every_s")

# What an instrument list says of one symbol; decimal texts. `contract`: base (or quote) units in a quantity of 1.
Listing = namedtuple("Listing", "tick lot contract", defaults=("1",))


class VenueFacts(namedtuple("VenueFacts", (
        "title",                       # the venue's name for people
        "proof",                       # of continuity, in a few words
        "routes",                      # tuples of channels that may share a connection; together: what is offered
        "symbol", "example",           # pattern of a symbol, and one
        "defaults",                    # {configuration key: value} of the keys whose default depends on the venue
        "depth_intervals_ms",          # paces of the book to choose from; () where there is no choice
        "snapshot_limits",             # levels a side to choose from (of the subscription, or a REST book); () all, always
        "snapshot_weights",            # REST: (up to this many levels, request weight), ...
        "ping",                        # Ping, or None where the venue pings or needs nothing
        "command_every_ms",            # between two texts on a connection
        "commands_per_hour",           # on a connection, 0: no such limit
        "connect_every_ms",            # between two connects to a host, whatever the venue behind it
        "lifetime_s",                  # of a connection at the venue; 0: without end
        "splits",                      # True: one bad stream fails its whole request, so ask again in halves
        "notes",                       # limits in words, for `feeder venues`
        "shared"),                     # channels whose ids are the same on every connection: book and quote ids grow, too
        defaults=((), (), (), None, 100, 0, 100, 0, False, "", ("trade",)))):
    __slots__ = ()

    @property
    def channels(self):
        return tuple(channel for channel in CHANNELS if any(channel in route for route in self.routes))

    @property
    def shared_bits(self):
        """`shared` as a definition tells it (docs/protocol.md)."""
        return sum(1 << number for number, channel in enumerate(CHANNELS) if channel in self.shared)

    def default(self, key):
        """Return the default of a configuration key that depends on the venue."""
        if key in self.defaults:
            return self.defaults[key]
        if key == "channels":
            return list(self.channels)
        return DEFAULTS[key] if key != "lifetime_s" else 0.97 * self.lifetime_s


# Of configuration keys that depend on the venue, where it does not say.
DEFAULTS = {"depth_interval_ms": 0, "snapshot_limit": 0, "snapshot_weight_per_minute": 1, "connects_per_5_minutes": 150,
            "streams_per_connection": 1024, "freshness_s": 0, "max_message_bytes": 16 << 20}


# What a message's place in the sequence means for a book at `sequence`.
OLD, NEXT, GAP = "old", "next", "gap"


class BrokenLine(VenueError):
    """A counter over the whole connection jumped: none of its books can be trusted (they are stale already)."""


# -- words that venues share: times, ids, JSON ---------------------------------------------------------------

def nanoseconds(time):
    """Return a time of now in s, ms, µs or ns as ns, by its size: venues differ, and one differs from itself."""
    if time < 10**11:
        return time * 10**9
    if time < 10**14:
        return time * 10**6
    return time * 10**3 if time < 10**17 else time


match_iso = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:Z|\+00:00)",
                       re.ASCII).fullmatch


def iso_ns(text):
    """Return RFC 3339 UTC text as ns since the epoch, with all of up to nine digits; before 1970: 0. Raises NumberError."""
    found = match_iso(text)
    if found is None:
        raise NumberError(f"{text[:40]!r} is no UTC time")
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second <= 60):
        raise NumberError(f"{text[:40]!r} is no UTC time")
    # Days since the epoch: Howard Hinnant, chrono-compatible low-level date algorithms, days_from_civil.
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468
    seconds = days * 86_400 + hour * 3_600 + minute * 60 + second
    return min(MAX_TIME_NS, max(0, seconds * 10**9 + int((found[7] or "").ljust(9, "0"))))


match_uuid = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


def trade_id_of(text):
    """Return a trade's id as 64 bits: digits as their number, a UUID's first 8 bytes, anything else digested.

    Packets have room for 64 bits. The same text always gives the same id; of others, equal ones come by accident only.
    """
    if text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 1 << 64:
        return int(text)
    if match_uuid(text):
        return int(text.replace("-", "")[:16], 16)
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def refuse_constant(text):
    raise ValueError(f"{text} is no JSON number")


# For venues that print numbers as numbers: they stay the text they are, exponents and trailing zeros included.
exact_json = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=refuse_constant).decode
plain_json = json.JSONDecoder(parse_constant=refuse_constant).decode


def packed(streams, most, characters=None):
    """Yield the streams in lists of at most so many, and of at most so many characters in all."""
    part, size = [], 0
    for stream in streams:
        if part and (len(part) == most or characters and size + len(stream) > characters):
            yield part
            part, size = [], 0
        part.append(stream)
        size += len(stream)
    if part:
        yield part


def follows_by_one(sequence, bridged, first, last, previous):
    """`Venue.follows` where each increment is one more than the last."""
    return NEXT if first == sequence + 1 else OLD if last <= sequence else GAP


def printed_decimals(text):
    if "e" in text or "E" in text:
        return fixed.decimals_of(text)
    return len(text.partition(".")[2])


# Longest first where one ends in another.
QUOTES = ("FDUSD", "USDT", "USDC", "TUSD", "USD1", "USDE", "USD", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "JPY", "KRW")


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
    book = REST                       # of facts, or of a dialect that has none
    contract = ""                     # what common names of its instruments end in: "-PERP"
    loads = staticmethod(plain_json)  # exact_json where numbers are printed as numbers

    def __init__(self, sink, instruments, discover=False, depth=20):
        self.sink = sink
        self.instruments = instruments
        self.discover = discover
        self.depth = depth
        self.likely = 0               # messages the learned patterns took
        self.unlikely = 0             # messages json took
        self.kinds = Counter()        # of the unlikely path: what they were
        self.not_market = 0           # trades that are none: insurance fund, X other than MARKET, block trades
        self.sessions = 0
        self.checksums_failed = 0     # those that agree are counted with their instruments

    # -- what a venue provides: names and places -------------------------------------------------------------

    @classmethod
    def recognises(cls, url):
        """Return True if a connection or request of this URL is this venue's; recordings name theirs so."""
        raise NotImplementedError

    @classmethod
    def spelling(cls, base, quote):
        """Return the symbol of a pair of currencies, for the embedded configuration and the twin."""
        return base + quote

    @classmethod
    def common_name(cls, symbol):
        """Return BASE/QUOTE[-what it is] of a symbol; the symbol where nobody can tell."""
        pair, mark, expiry = symbol.partition("_")
        for quote in QUOTES:
            if pair.endswith(quote) and pair != quote:
                return f"{pair[:-len(quote)]}/{quote}{'-' + expiry if mark else cls.contract}"
        return symbol + cls.contract

    def lines(self, symbols, channels, depth_interval_ms, streams_per_connection, levels=0):
        """Return the Lines that carry `channels` of `symbols`; `levels` a side of the book are wanted.

        A stream is any text that tells this venue's channel and symbol; nobody else reads it.
        """
        raise NotImplementedError

    def symbol_of(self, stream):
        """Return the symbol a stream name of `lines` is about."""
        raise NotImplementedError

    # -- a connection; a venue that keeps nothing for one is its own session ---------------------------------

    def session(self):
        """Return what decodes one connection: itself, or a new Session."""
        return self

    def hello(self, request_id):
        """Return the Commands to send before the first subscription."""
        return []

    def subscribe(self, streams, request_id):
        """Return the Commands to send, in order, each within the venue's limits; the ids count up from request_id."""
        raise NotImplementedError

    def unsubscribe(self, streams, request_id):
        """Return the Commands that end these subscriptions; STREAM venues need it to have a book again."""
        raise NotImplementedError

    def decode(self, payload, recv_ns):
        """Decode one WebSocket payload (bytes) into calls on the sink; return a Notice or None.

        Raises VenueError, NumberError; nothing has been called on the sink then but perhaps `define` and `stale`.
        Raises BrokenLine when the connection as a whole missed something, after `stale` for each of its books.
        """
        self.unlikely += 1
        return self.decode_json(payload, recv_ns)

    def decode_json(self, payload, recv_ns):
        """The unlikely path alone: what `decode` has to agree with."""
        raise NotImplementedError

    # -- REST ------------------------------------------------------------------------------------------------

    def instruments_requests(self, symbols):
        """Return the Requests for the instrument lists these symbols are in."""
        return [self.instruments_request(symbols)]

    def instruments_request(self, symbols):
        """Return the Request, where it is one."""
        raise NotImplementedError

    def decode_instruments(self, body):
        """Return {symbol: Listing} of an instrument list."""
        raise NotImplementedError

    def more_instruments(self, request, body):
        """Return the Request for the next page of an answer, None where there is none."""
        return None

    def snapshot_request(self, instrument, levels):
        """Return the Request for one book snapshot. REST venues only, as the next two."""
        raise NotImplementedError

    def decode_snapshot(self, instrument, body, recv_ns):
        """Decode one REST book into `sink.snapshot`."""
        raise NotImplementedError

    def snapshot_symbol(self, url):
        """Return the symbol whose book a recorded REST request asked for, None if it is no such request."""
        return None

    # -- continuity ------------------------------------------------------------------------------------------

    @staticmethod
    def follows(sequence, bridged, first, last, previous):
        """Return OLD, NEXT or GAP for an increment on a book at `sequence`; `bridged`: not the first after a snapshot."""
        raise NotImplementedError

    def renew(self, instrument):
        """The book was given up; IMAGE venues have its next message taken as a snapshot."""

    # -- what all share --------------------------------------------------------------------------------------

    def parse(self, payload):
        try:
            return self.loads(payload.decode("utf-8"))
        except (ValueError, RecursionError) as error:       # JSON and Unicode errors are ValueErrors
            raise self.fault(f"not JSON ({error})", payload) from None

    def need(self, data, key, kind, payload):
        value = data.get(key)
        if type(value) is not kind or (kind is int and not 0 <= value < INT64):
            raise self.fault(f"{key!r} is {value!r:.40}, expected {'text' if kind is str else 'a count'}"
                             if kind is not bool else f"{key!r} is {value!r:.40}, expected true or false", payload)
        return value

    def need_count(self, data, key, payload):
        """Return a count that is a JSON number, or the text of one (as exact_json leaves them)."""
        value = data.get(key)
        if type(value) is str and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if type(value) is not int or not 0 <= value < INT64:
            raise self.fault(f"{key!r} is {value!r:.40}, expected a count", payload)
        return value

    def need_ns(self, data, key, payload):
        """Return a time as ns: an integer of any unit, or RFC 3339 text."""
        value = data.get(key)
        if type(value) is str and not value.isdigit():
            try:
                return iso_ns(value)
            except NumberError as error:
                raise self.fault(f"{key!r}: {error}", payload) from None
        return min(MAX_TIME_NS, nanoseconds(self.need_count(data, key, payload)))

    def levels(self, instrument, sides, payload, price=0, quantity=1):
        """Return a flat list of ints for each list of rows; a row has decimal text at `price` and at `quantity`."""
        kind = list if type(price) is int else dict
        try:
            prices, quantities = ([row[at] for rows in sides for row in rows] for at in (price, quantity))
            ok = all(type(rows) is list for rows in sides) and all(type(row) is kind for rows in sides for row in rows)
        except (TypeError, LookupError):
            ok = False
        if not ok or not all(type(text) is str for texts in (prices, quantities) for text in texts):
            raise self.fault("a side is no list of levels with price and quantity", payload)
        flat = [None] * (2 * len(prices))
        flat[::2] = self.scaled(instrument, prices, "price")
        flat[1::2] = self.scaled(instrument, quantities, "quantity")
        answer, start = [], 0
        for rows in sides:
            answer.append(flat[start:start + 2 * len(rows)])
            start += 2 * len(rows)
        return answer

    def trades(self, calls):
        """Hand on trades, all or none: (instrument, sequence, event_ns, recv_ns, trade_id, price text, quantity text, side).
        """
        numbers = [(self.scaled(call[0], [call[5]], "price")[0], self.scaled(call[0], [call[6]], "quantity")[0],
                    call[0].price_decimals, call[0].quantity_decimals) for call in calls]
        for call, (price, quantity, price_decimals, quantity_decimals) in zip(calls, numbers):
            instrument = call[0]              # a later trade of the message may have widened it
            self.sink.trade(*call[:5], price * 10 ** (instrument.price_decimals - price_decimals),
                            quantity * 10 ** (instrument.quantity_decimals - quantity_decimals), call[7])

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
            instrument.shared = self.facts.shared_bits if self.facts else 0
            self.sink.define(instrument, 1, 1)
        elif instrument is None:
            self.count("unknown symbol")
        return instrument

    def scaled(self, instrument, texts, what):
        """Return the ints of all of a message's texts, `what` being "price" or "quantity".

        They are at the instrument's decimals after the call: as many as are printed, up to 8, so that the likely path has
        no zeros to drop. The instrument is widened only where all texts can be read so.
        """
        printed = max(map(printed_decimals, texts), default=0)
        if printed > fixed.WIRE_DECIMALS:
            printed = 0
        known = getattr(instrument, what + "_decimals")
        decimals = max(known, printed)
        try:
            try:
                numbers = fixed.parse_all(texts, decimals)
            except PrecisionError as error:
                decimals = max(map(fixed.decimals_of, texts))
                if decimals > fixed.MAX_DECIMALS:
                    raise error
                numbers = fixed.parse_all(texts, decimals)
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

    def set_auction(self, instrument, is_on):
        """There is no continuous trading in this instrument now (or is again): bids above asks are no fault."""
        if instrument.may_cross != is_on:
            instrument.may_cross = is_on
            self.sink.define(instrument, 1, 1)

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


class Session:
    """One connection of a venue that has to remember what was said on it. The venue does the rest.

    `number` counts the venue's sessions: sequences that we count ourselves (`mirror.Mirror`) begin with it, so that
    whatever an older connection still says is old.
    """

    def __init__(self, venue):
        venue.sessions += 1
        self.venue = venue
        self.sink = venue.sink
        self.number = venue.sessions

    @property
    def name(self):
        return self.venue.name

    def hello(self, request_id):
        return self.venue.hello(request_id)

    def subscribe(self, streams, request_id):
        return self.venue.subscribe(streams, request_id)

    def unsubscribe(self, streams, request_id):
        return self.venue.unsubscribe(streams, request_id)

    def decode(self, payload, recv_ns):
        self.venue.unlikely += 1
        return self.decode_json(payload, recv_ns)

    def decode_json(self, payload, recv_ns):
        raise NotImplementedError

    def broken(self, instruments, what, recv_ns):
        """Return the BrokenLine to raise; these books are stale from here on."""
        for instrument in instruments:
            self.sink.stale(instrument, "gap", recv_ns)
        return BrokenLine(f"{self.name}: {what}")
