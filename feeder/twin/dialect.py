"""What a venue's dialect is: how the synthetic market's events become its messages, and its clients' requests are met.

    Dialect    one venue on one port: what is listed, which paths are served, its REST answers, its limits
    Session    one connected client: takes its requests, holds what belongs to it (numbers, flags, heartbeat deadlines)
    Channel    what clients subscribe to: makes each message once, as text, for all of them
    Window     what the subscribers of a book were told so far, and how it changes: within a depth, or all of it

The way of a message:   event -> Channel.texts -> Channel.dress, a group of subscribers -> Session.finish, one of them

`dress` and `finish` are for what differs: a combined stream's name, a channel number, a count of the connection. Where
texts are alike, one frame serves all. A fault that spoils content is the channel's (`hurt`); one that loses, doubles or
holds back a message is the server's, after `finish`, so that a lost message leaves its hole in the venue's own count.

Machines: bytes, ints and text; the time is told as steady ns and wall ms. A session asks its peer (server side of the
connection) to send, join, leave and close; the peer calls `expire` when `deadline_ns` has come.
"""

import json
from collections import deque
from math import floor, log10
from urllib.parse import parse_qs, urlsplit

from ..errors import ConfigError, FeederError
from .faults import SHOWN_BY_ALL
from .market import BBO, DEPTH, TRADE, Spec

SECOND_NS, MINUTE_NS = 10 ** 9, 60 * 10 ** 9
TEXT, BINARY, PING, PONG = 1, 2, 9, 10       # opcodes, RFC 6455 §5.2

# What is listed when nobody says what, in this order, with a first price in US dollars.
COINS = {"BTC": "61837.64", "ETH": "2681.62", "SOL": "156.23", "BNB": "512.40", "XRP": "0.6123", "ADA": "0.33450",
         "DOGE": "0.10123", "AVAX": "21.870", "DOT": "4.612", "LINK": "10.234", "TRX": "0.12694", "LTC": "58.91",
         "BCH": "341.20", "ETC": "18.420", "UNI": "6.104", "AAVE": "98.12", "ATOM": "4.913", "NEAR": "3.987",
         "FIL": "3.612", "XLM": "0.09876", "SHIB": "0.00001234"}
RATES = {"KRW": 1_350.0, "BTC": 1 / 61_837, "ETH": 1 / 2_681, "EUR": 0.92}     # of other quotes, a dollar's worth


class RequestError(FeederError):
    """What the venue answers a bad request: `text` is the JSON, `status` and `headers` HTTP's where it has them."""

    def __init__(self, text, status=400, headers=()):
        super().__init__(text)
        self.text, self.status, self.headers = text, status, headers


class Answer:
    """Of a REST request. `text` None: not known yet, `retry()` says it when it is (a recording waits for its own)."""

    __slots__ = ("text", "headers", "retry")

    def __init__(self, text, headers=(), retry=None):
        self.text, self.headers, self.retry = text, headers, retry


class Budget:
    """At most `count` in any `seconds`; take() refuses without counting."""

    def __init__(self, count, seconds):
        self._times = deque(maxlen=count)
        self._span_ns = int(seconds * SECOND_NS)

    def take(self, now_ns):
        times = self._times
        if len(times) == times.maxlen and now_ns - times[0] < self._span_ns:
            return False
        times.append(now_ns)
        return True


class Dialect:
    """One venue. Subclasses say what is different; one object per Venue, so it may hold the venue's state."""

    name = ""
    session = None                    # the class of its sessions
    opcode = TEXT                     # of data frames
    contiguous = True                 # whether update ids of the market have no holes
    uncounted = TRADE                 # events that do not count against the rate: of trades, one spelling is read
    level_count = 1_000               # of the true book, a side
    connects = (300, 300)             # connections in so many seconds, per address; refused with `connect_refusal`
    connect_refusal = too_many_status = 429
    max_connections = None            # at one time
    faults = frozenset(SHOWN_BY_ALL)  # which of faults.ALL_KINDS a client of this venue can see
    gap_cuts = mute_cuts = False      # a lost diff, a mute that ends cuts the connection, where nothing else tells
    replays = False                   # whether a recording can be its source
    settings = {}                     # what is unsure at the venue, or wanted otherwise in tests: {attribute: default}

    def __init__(self, time_scale=1.0, **settings):
        self.time_scale = time_scale
        for name, value in {**self.settings, **settings}.items():
            if name not in self.settings:
                raise ConfigError(f"{self.name} has no setting {name!r}, expected one of "
                                  f"{', '.join(self.settings) or 'none'}")
            setattr(self, name, value)
        self.sessions = 0             # ever opened, to number them

    def ns(self, seconds):
        """A time of the protocol, shortened by `time_scale` so that tests need not wait for it."""
        return int(seconds * SECOND_NS / self.time_scale)

    # --- what is listed

    def spell(self, base, quote):
        """The venue's symbol for a pair; with quote None, in the quote it lists by default."""
        raise NotImplementedError

    def own(self, symbol):
        """A symbol as an operator may type it, in the venue's letters."""
        return symbol.upper()

    def symbols(self, count):
        """Its first `count` symbols; invented ones follow the known."""
        made_up = [f"T{number:04d}" for number in range(len(COINS), count)]
        return [self.spell(base, None) for base in (list(COINS) + made_up)[:count]]

    def specs(self, symbols):
        return [self.spec(symbol) for symbol in symbols]

    def words(self, spec):
        return Words(spec)

    def makers(self):
        """{kind of event: what makes it text}, where a channel is the source's text as it is."""
        return {}

    # --- requests

    def route(self, target):
        """What the session must know of an upgrade's target; None: nothing is served there."""
        raise NotImplementedError

    def channel(self, key, source):
        """Make the channel that sessions join by `key`."""
        raise NotImplementedError

    def rest(self, target, desk, now_ns, now_ms):
        """Answer a GET, or raise RequestError; `desk.rest_fault(symbol, is_snapshot)` names a fault to show."""
        raise RequestError('{"error":"no such path"}', 404)

    def status(self):
        """What is worth telling at /twin/status."""
        return {}

    # texts of REST faults, each venue's own
    def too_many(self, retry_s):
        return RequestError('{"error":"too many requests"}', self.too_many_status, [("Retry-After", str(retry_s))])

    def broken(self):
        return RequestError('{"error":"internal error"}', 500)


class Session:
    """One client. `peer` is its connection: send(text), ping(bytes), tell(channel, text), join, leave, close, abort."""

    finishes = False                  # whether each message passes `finish`
    deadline_ns = None                # when `expire` wants to be called

    def __init__(self, dialect, peer, route):
        self.dialect, self.peer, self.route = dialect, peer, route
        dialect.sessions += 1
        self.number = dialect.sessions
        self.topics = {}              # name -> (channel key, label), None for one that stays silent; in order

    def open(self, now_ns):
        """The connection is made."""

    def take(self, opcode, payload, now_ns):
        """A message, ping or pong of the client."""

    def expire(self, now_ns):
        """The deadline has come; set the next one."""

    def finish(self, channel, text):
        """This client's own form of a channel's text; None: it does not want it. Called once for each, even if lost."""
        return text

    def farewell(self, now_ns):
        """Announce the end of the connection where the venue does; return how many seconds ahead."""
        return 0

    def maintain(self, is_starting):
        """Tell of the venue's maintenance, where it tells; return how many seconds it lasts."""
        return 0

    def garbage(self, now_ms):
        """[(opcode, payload)] that no client may choke on."""
        return [(TEXT, b"this is not JSON"), (TEXT, self.half_a_message(now_ms).encode()), (BINARY, bytes(range(32)))]

    def half_a_message(self, now_ms):
        return '{"data":{"time":%d,"bids":[["' % now_ms

    def subscribe(self, name, key, label=None):
        """Join a channel under `name`; return the texts that it has for newcomers. Key None: silence."""
        channel = self.peer.join(name, key, label)
        return [] if channel is None else [(channel, text) for text in channel.first(self.peer.now_ms)]

    def tell(self, firsts):
        for channel, text in firsts:
            self.peer.tell(channel, text)


class Channel:
    """What clients subscribe to, for as long as somebody does."""

    kinds = (DEPTH,)                  # the events it is made of
    is_book = False                   # whether faults of diffs apply
    own_faults = ()                   # those of the wire that are `hurt`s here, since not every loss could be told
    missed = ()                       # messages such a fault keeps back for now
    idle_ns = None                    # `idle` is asked for texts when nothing was sent for so long
    deadline_ns = None                # the server's: idle_ns after the last message

    def __init__(self, key, symbol):
        self.key, self.symbol = key, symbol
        self.groups = {}              # label -> [peers]

    def texts(self, event, now_ms):
        """The messages an event makes, usually one or none."""
        raise NotImplementedError

    def hurt(self, kind, event, now_ms):
        """`texts`, with a fault of content."""
        raise NotImplementedError

    def settle(self):
        """Give up what is kept back: the messages to send for it."""
        return ()

    def first(self, now_ms):
        """What a newcomer is sent at once; it describes the state after the last message."""
        return []

    def idle(self, now_ms):
        return []

    def dress(self, label, text):
        return text


class BookChannel(Channel):
    """A book told by a snapshot and then by what changes. `sequence`: the venue's number of the last message."""

    is_book = True

    def __init__(self, key, listing, words, depth=None):
        super().__init__(key, listing.spec.symbol)
        self.listing, self.words = listing, words
        self.window = Window(listing, depth)
        self.sequence = listing.update_id
        self.now_ms = 0               # of the last message

    def book(self):
        """(sequence, bids, asks) a client holds that has read everything; [(price, lots)], best first."""
        return (self.sequence, *self.window.levels())


class BestChannel(Channel):
    """The best bid and offer."""

    kinds = (BBO,)

    def __init__(self, key, listing, words):
        super().__init__(key, listing.spec.symbol)
        self.listing, self.words = listing, words


class Window:
    """The best `depth` levels a side as they were told, None for all of them: {price: lots}.

    `move` returns what a diff changes of it, best first. Levels that leave the window because better ones came are
    told as removed where the venue does so (`tells_leaving`); elsewhere clients cut their books themselves.
    """

    def __init__(self, listing, depth, tells_leaving=True, tells_ghosts=False):
        self.depth, self.tells_leaving, self.tells_ghosts = depth, tells_leaving, tells_ghosts
        self.bids, self.asks = dict(listing.bids.levels(depth)), dict(listing.asks.levels(depth))

    def levels(self):
        return sorted(self.bids.items(), reverse=True), sorted(self.asks.items())

    def move(self, event):
        """Take a diff of the market; return ([(price, lots)] of bids, of asks), lots 0 for removals."""
        listing = event[1]
        self.bids, bids = self._moved(self.bids, listing.bids, event[5])
        self.asks, asks = self._moved(self.asks, listing.asks, event[6])
        return bids, asks

    def _moved(self, old, side, changes):
        if self.depth is None:
            told = [(price, lots) for price, lots in changes if old.get(price, 0) != lots]
            for price, lots in told:
                if lots:
                    old[price] = lots
                else:
                    del old[price]
            return old, told
        keys, sign = side.keys, side.sign
        new = dict(side.levels(self.depth))
        told = [(price, lots) for price, lots in new.items() if old.get(price) != lots]
        removed = [price for price in old if price not in new]
        if not self.tells_leaving:
            removed = [price for price in removed if sign * price not in side.quantities]
        if self.tells_ghosts and keys:           # came and went since the last diff, within the window
            worst = keys[-min(self.depth, len(keys))]
            removed += [price for price, lots in changes if not lots and price not in old and sign * price > worst]
        if removed:
            told += [(price, 0) for price in removed]
            told.sort(key=lambda level: -sign * level[0])
        return new, told


class Words:
    """Numbers of one listing as text. Ticks and lots are multiplied to units of the last decimal that is shown."""

    LEVEL = '["PRICE","QUANTITY"]'
    __slots__ = ("symbol", "_price", "_quantity", "_level", "_tick", "_price_one", "_lot", "_lot_one")

    def __init__(self, spec):
        self.symbol = spec.symbol
        self._price, self._quantity = _template(spec.price_decimals), _template(spec.lot_decimals)
        self._level = self.LEVEL.replace("PRICE", self._price).replace("QUANTITY", self._quantity)
        self._tick, self._price_one = spec.tick_units, 10 ** spec.price_decimals
        self._lot, self._lot_one = spec.lot_units, 10 ** spec.lot_decimals

    def price(self, ticks):
        return self._price % divmod(ticks * self._tick, self._price_one)

    def quantity(self, lots):
        return self._quantity % divmod(lots * self._lot, self._lot_one)

    def levels(self, pairs):
        """The inside of a JSON list of levels. Cost: 0.6 us a level; most of what a diff costs here."""
        level, tick, price_one, lot, lot_one = self._level, self._tick, self._price_one, self._lot, self._lot_one
        return ",".join([level % (ticks * tick // price_one, ticks * tick % price_one,
                                  lots * lot // lot_one, lots * lot % lot_one) for ticks, lots in pairs])

    def pairs(self, pairs):
        return [[self.price(ticks), self.quantity(lots)] for ticks, lots in pairs]


class ShortWords(Words):
    """No zeros at the end: 65140 and 0.014."""

    __slots__ = ()

    def price(self, ticks):
        return short(Words.price(self, ticks))

    def quantity(self, lots):
        return short(Words.quantity(self, lots))

    def levels(self, pairs):
        price, quantity = self.price, self.quantity
        return ",".join([f'["{price(ticks)}","{quantity(lots)}"]' for ticks, lots in pairs])


def short(text):
    """'0.0140' -> '0.014', '65140.0' -> '65140'."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _template(decimals):
    """For (whole, part): '%d.%02d'; without decimals the part, always 0, is formatted to nothing."""
    return f"%d.%0{decimals}d" if decimals else "%d%.0s"


def grid_spec(symbol, base, quote, digits=6, lot=None):
    """A plausible listing: a price of so many digits, a lot of a few cents. The same one each time for a name."""
    dollars = first_price(base)
    price = dollars * RATES.get(quote, 1.0)
    tick = step(floor(log10(price)) + 1 - digits)
    lot = lot or step(max(min(-2 - floor(log10(dollars)), 0), -8))
    return Spec(symbol, base, quote, f"{price:.16f}", tick, lot, typical_lots=500 / dollars / float(lot))


def step(power):
    """10 ** power as decimal text."""
    return str(10 ** power) if power >= 0 else f"{0:.{-power}f}"[:-1] + "1"


def first_price(base):
    """In US dollars; for a name that is not in the table, its bytes choose."""
    if base in COINS:
        return float(COINS[base])
    return 1 + sum(place * byte for place, byte in enumerate(base.encode(), 3)) % 9_000 / 100


def parsed(target):
    """(path, {parameter: value}) of a request's target."""
    url = urlsplit(target)
    return url.path, {name: values[0] for name, values in parse_qs(url.query).items()}


def request_of(payload):
    """The JSON object a client sent, or None."""
    try:
        request = json.loads(payload)
    except ValueError:
        return None
    return request if isinstance(request, dict) else None


def iso_text(time_ns, digits=6):
    """RFC 3339 in UTC, so many digits of the second: '2026-08-16T23:37:05.376419Z'."""
    seconds, part = divmod(time_ns, SECOND_NS)
    days, rest = divmod(seconds, 86_400)
    # Civil from days (H. Hinnant): years that begin in March end with the leap day.
    era, day = divmod(days + 719_468, 146_097)
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    day -= 365 * year + year // 4 - year // 100
    month = (5 * day + 2) // 153
    day -= (153 * month + 2) // 5 - 1
    month += 3 if month < 10 else -9
    year += 400 * era + (month <= 2)
    fraction = f".{part // 10 ** (9 - digits):0{digits}d}" if digits else ""
    return f"{year}-{month:02d}-{day:02d}T{rest // 3_600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}{fraction}Z"


def dumps(value):
    return json.dumps(value, separators=(",", ":"))
