"""What a consumer of the multicast is handed: typed events, and the instruments they are about.

    for event in listener:                        listener.py makes them, by way of receiver.py and arbiter.py
        if isinstance(event, Book): ...

Market      Book, Trade, Quote, Definition      each of one instrument, in the order of the stream they came from
Trust       State, Gap, Dropped                 what may be shown, what is missing: in-band, at the place where it is so
The way     Session, SessionEnded, Silence, Switch, Line, Venue

An Instrument is one thing at one venue, whichever streams carry it. It is an object that lives as long as its
listener and always tells what holds *now*: at the moment an event is handed over its book is exactly as of that event.
Events are values: they may be kept, and each has its Definition with it, so that its numbers stay readable.

Prices and quantities are ints, scaled by the definition's exponents, exact; `price_text` makes decimal text of them.
Times are ns since 1970: `event_ns` by the venue's clock, `recv_ns` by the publisher's; 0 where there is none.
`channel`, `session`, `sequence` name the message on the wire (docs/protocol.md) that brought an event.
"""

from typing import Any, NamedTuple, Optional, Union

from feeder.fixed import to_text
from feeder.message import LIVE, SIDE_NAMES

STATES = ("syncing", "live", "stale")
CAUSES = ("network", "kernel", "consumer")           # where messages of a Gap were lost, as far as it can be told


class Level(NamedTuple):
    """One price of a book; scaled ints."""

    price: int
    quantity: int


class Definition(NamedTuple):
    """What an instrument is and how its numbers are to be read: told when it is new, and when that changes.

    After a change of exponents older integers are of another scale; the book comes anew, with is_snapshot.
    """

    instrument: "Instrument"
    channel: int
    session: int
    sequence: int
    venue: str                         # binance_spot
    symbol: str                        # the venue's own text, BTCUSDT
    name: str                          # the common one, BTC/USDT
    price_exponent: int                # -18 to 0: a price is its int x 10 ** price_exponent
    quantity_exponent: int
    depth: int                         # levels a side that are published at least; 0: all
    tick: int                          # price step, 0: not known
    lot: int                           # quantity step, 0: not known
    shared: int                        # packet.SHARED_*: what can be compared between streams

    def price_text(self, price: int) -> str:
        """Return the exact decimal text of a scaled price."""
        return to_text(price, -self.price_exponent)

    def quantity_text(self, quantity: int) -> str:
        """Return the exact decimal text of a scaled quantity."""
        return to_text(quantity, -self.quantity_exponent)


class Book(NamedTuple):
    """One event of a book that is live: a change, or all of it.

    With is_snapshot the levels are the whole book, to be put in the place of what was known; else quantity 0 removes
    a price and any other quantity sets it. Whoever applies every Book has instrument.bids() and asks() at each.
    """

    instrument: "Instrument"
    definition: Definition
    channel: int
    session: int
    sequence: int                      # of the event's last message; of a book of the loop: the one that comes next
    venue_sequence: int                # the venue's id of the last update in the book
    event_ns: int
    recv_ns: int
    is_snapshot: bool
    flat_bids: tuple[int, ...]         # price, quantity, price, quantity ...
    flat_asks: tuple[int, ...]

    @property
    def bids(self) -> list[Level]:
        return list(map(Level, self.flat_bids[::2], self.flat_bids[1::2]))

    @property
    def asks(self) -> list[Level]:
        return list(map(Level, self.flat_asks[::2], self.flat_asks[1::2]))


class Trade(NamedTuple):
    """One trade; good in itself, also while the book is not live."""

    instrument: "Instrument"
    definition: Definition
    channel: int
    session: int
    sequence: int
    venue_sequence: int
    event_ns: int
    recv_ns: int
    trade_id: int
    price: int
    quantity: int
    side: int                          # the aggressor's: message.BUY, SELL

    @property
    def price_text(self) -> str:
        return self.definition.price_text(self.price)

    @property
    def quantity_text(self) -> str:
        return self.definition.quantity_text(self.quantity)

    @property
    def side_text(self) -> str:
        """"buy" where the taker bought, else "sell"."""
        return SIDE_NAMES[self.side]


class Quote(NamedTuple):
    """Best bid and offer by the venue's own quote stream: apart from the book, ahead of it or behind."""

    instrument: "Instrument"
    definition: Definition
    channel: int
    session: int
    sequence: int
    venue_sequence: int
    event_ns: int
    recv_ns: int
    bid: Optional[Level]               # None: no bid
    ask: Optional[Level]


class State(NamedTuple):
    """What may be shown of an instrument has changed; `reason` is a word or two, "none" while it is live."""

    instrument: "Instrument"
    state: str                         # one of STATES
    reason: str

    @property
    def is_live(self) -> bool:
        return self.state == "live"


class Gap(NamedTuple):
    """Messages first .. last of a stream are missing, and no longer waited for.

    What it does to books is told before it, by State or Switch. `covered`: everything that was in it came, or comes, by
    another stream, and nothing is missed.
    """

    channel: int
    session: int
    first: int
    last: int
    cause: str                         # one of CAUSES
    covered: bool
    at_ns: int                         # when they were given up, by the clock of this host

    @property
    def message_count(self) -> int:
        return self.last - self.first + 1


class Dropped(NamedTuple):
    """So many trades of the instrument were not handed over.

    Reasons: "reader behind", of one that conflates; "unknown scale", the definition that they are of was lost, "no
    definition", the first one was, and has come only now.
    """

    instrument: "Instrument"
    trade_count: int
    reason: str


class Session(NamedTuple):
    """A stream begins to be heard; `first` above 1: it had begun before."""

    channel: int
    session: int
    first: int


class SessionEnded(NamedTuple):
    """A stream is over: its publisher has ended ("end"), or all lines that carried it carry another one ("replaced").

    `covered`: other streams carry all that it did, so nothing is missed.
    """

    channel: int
    session: int
    reason: str
    covered: bool


class Silence(NamedTuple):
    """Nothing comes of a stream for longer than a publisher may be silent; or, is_over, it is heard again.

    `covered`: other streams carry all that it did. What was missed of one that is heard again is told by Gaps.
    """

    channel: int
    session: int
    is_over: bool
    covered: bool


class Switch(NamedTuple):
    """The stream that was followed cannot be any more, another one is in its place.

    Told for each instrument whose book goes on with the other stream, and once without an instrument where all of a
    stream went silent, ended, or had a gap, and others carry something of it.
    """

    instrument: Optional["Instrument"]
    from_channel: int
    from_session: int
    to_channel: int
    to_session: int
    reason: str


class Line(NamedTuple):
    """One of the paths by which packets come has gone silent, or is heard again."""

    line: int                          # from 0, as they were given
    name: str
    is_up: bool


class Venue(NamedTuple):
    """A publisher's connection to a venue came or went. Each of its instruments tells its own State."""

    venue: str
    is_connected: bool
    reason: str
    text: str                          # for people
    channel: int
    session: int


Event = Union[Book, Trade, Quote, Definition, State, Gap, Dropped, Session, SessionEnded, Silence, Switch, Line, Venue]


class Instrument:
    """One thing at one venue, as it may be shown now. Read it; arbiter.py writes it."""

    __slots__ = ("venue", "symbol", "definition", "state", "reason", "view", "channel", "session", "last_trade",
                 "last_quote", "is_quoted", "book_ns")

    venue: str
    symbol: str
    definition: Definition
    state: str                         # one of STATES
    reason: str                        # why it is not live; "none" while it is
    channel: int                       # of the stream whose book is shown
    session: int
    last_trade: Optional[Trade]        # the newest handed over
    last_quote: Optional[Quote]        # likewise; see `quote`
    view: Any                          # receiver.View of the stream that is followed

    def __init__(self, venue: str, symbol: str) -> None:
        self.venue = venue
        self.symbol = symbol
        self.state = "syncing"
        self.reason = "no snapshot"
        self.view = None
        self.channel = self.session = 0
        self.last_trade = self.last_quote = None
        self.is_quoted = False
        self.book_ns = 0

    @property
    def name(self) -> str:
        """The common name, BTC/USDT."""
        return self.definition.name

    @property
    def is_live(self) -> bool:
        """True while the book is the venue's, without anything missing."""
        return self.state == "live" and self.view.state == LIVE

    def bids(self, most: Optional[int] = None) -> list[Level]:
        """Return the bids, best first, at most so many; none while the book is not live: it may be wrong then."""
        return self.last_known_bids(most) if self.is_live else []

    def asks(self, most: Optional[int] = None) -> list[Level]:
        """Return the asks, best first, likewise."""
        return self.last_known_asks(most) if self.is_live else []

    def last_known_bids(self, most: Optional[int] = None) -> list[Level]:
        """Return the bids whether they are right or not: to look at, never to act on."""
        return [] if self.view is None else list(map(Level._make, self.view.bids.levels(most)))

    def last_known_asks(self, most: Optional[int] = None) -> list[Level]:
        return [] if self.view is None else list(map(Level._make, self.view.asks.levels(most)))

    @property
    def best_bid(self) -> Optional[Level]:
        """The book's best bid; None where there is none or the book is not live."""
        found = self.bids(1)
        return found[0] if found else None

    @property
    def best_ask(self) -> Optional[Level]:
        found = self.asks(1)
        return found[0] if found else None

    @property
    def quote(self) -> Optional[Quote]:
        """The venue's best bid and offer; None from a loss of trust (State, Gap) until the next one comes."""
        return self.last_quote if self.is_quoted else None

    @property
    def venue_sequence(self) -> int:
        """The venue's id of the last update in the book; 0 before the first."""
        return 0 if self.view is None else int(self.view.last_venue_sequence)

    def age_ns(self, now_ns: int) -> Optional[int]:
        """Return how long ago the publisher received the book's last event; None before the first one."""
        return now_ns - self.book_ns if self.book_ns else None

    def price_text(self, price: int) -> str:
        """Return the exact decimal text of a price of this instrument, as it is scaled now."""
        return self.definition.price_text(price)

    def quantity_text(self, quantity: int) -> str:
        return self.definition.quantity_text(quantity)

    def __repr__(self) -> str:
        return f"<{self.venue}:{self.symbol} {self.state}>"
