"""What a consumer sees of several streams: for each instrument one book, each trade once, and what may be trusted.

In:   what the Receiver heard, one Heard at a time.   Out: the public events (events.py) that it means.
Hot:  Arbiter.on_book, on_trade, on_quote: they add about a quarter to what the Receiver costs.

A stream is one (channel, session), and has its own View of each instrument. An instrument is (venue, symbol), carried
by any number of streams; its Choice says whose book is shown (`followed`), and changes it:

    the followed book is live    another takes over only in a race: its venue sequence is greater than the last told
    it is not, or it is gone     any other live one; in a race only if its venue sequence is not lower
    none is                      the instrument is not live, for the reason of the one that was followed

There is a race where all streams say that the number is the same on every connection (Definition.shared), and scale
alike. Else the followed stream alone is heard, so a change between two of them may miss trades, or tell some twice:
Switch says where. Who was not live for SETTLED_NS takes no lead from one who is: a stream that loses packets would
flap. A live book that stays lower for BEHIND_NS, when there is no other, is taken all the same: no line is late for
so long, so what it lacks was outside its window, or the venue began to count anew.

Another stream's book has another window, so a change of streams brings the whole book, as a snapshot; so does
becoming live. Over all instruments walk only tick(), once a second, what begins and ends streams, and, where there are
several, a gap; with one stream a gap walks over those that were live.

A gap of one stream is `covered` where another one carries all that it does. Should that one fail before it is sure to
have brought it, the Gap is told again, as not covered.

Not here: order and loss within a stream (receiver.py), clocks: `now_ns` is the wall clock, as given to the Receiver.
"""

from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from feeder import receiver
from feeder.counter import Histogram
from feeder.events import (Book, Definition, Dropped, Event, Gap, Instrument, Level, Line, Quote, Session, SessionEnded,
                           Silence, State, Switch, Trade, Venue)
from feeder.message import LIVE, REASONS, STALE, STATE_NAMES
from feeder.packet import SHARED_BBO, SHARED_BOOK, SHARED_TRADE, SNAPSHOT, Status

MAX_INSTRUMENTS = 65_536
MAX_FINISHED = 32                 # ended streams kept for the report
MAX_PROMISES = 1_000              # covered gaps that may have to be told again
KNOWN_TRADES = 1_024              # ids remembered at least, of an instrument
KNOWN_TRADES_ALONE = 128          # while one stream carries it: for the moment when another one joins
KNOWN_BOOKS = 64                  # venue sequences, to measure how late the others are
RACE_LEVELS = 1_000               # a book with more than that changes streams at need only: each time it is copied
SETTLED_NS = 3_000_000_000        # see above; and so long a stream has to carry an instrument to cover others' gaps
BEHIND_NS = 3_000_000_000
TICK_NS = 1_000_000_000

NOTHING: tuple[Event, ...] = ()
TERMS = slice(Definition._fields.index("venue"), None)            # of a Definition, what tells one from another
SCALE = slice(Definition._fields.index("price_exponent"), Definition._fields.index("depth"))


class Flow:
    """One stream, and its part in the race."""

    __slots__ = ("channel", "session", "carriers", "live", "quoted", "is_silent", "wins", "late", "unused", "lag",
                 "gaps", "lost", "covered")

    def __init__(self, channel, session):
        self.channel = channel
        self.session = session
        self.carriers = {}             # view -> Carrier
        self.live = {}                 # those whose book is live, as keys: in order
        self.quoted = set()            # those that told the last quote of their instrument
        self.is_silent = False
        self.wins = 0                  # events that came here first
        self.late = 0                  # that another stream had told
        self.unused = 0                # of one that was not followed, where there is no race
        self.lag = Histogram()         # how much later than the first the late ones were, where that is remembered
        self.gaps = self.lost = self.covered = 0

    def report(self):
        return {"channel": self.channel, "session": self.session, "instruments": len(self.carriers),
                "live": len(self.live), "silent": self.is_silent, "wins": self.wins, "late": self.late,
                "unused": self.unused, "lag_ns": self.lag.summary(), "gaps": self.gaps, "lost": self.lost,
                "covered": self.covered}


class Carrier:
    """One instrument in one stream."""

    __slots__ = ("flow", "view", "choice", "definition", "is_live", "live_ns", "sequence", "event_ns", "recv_ns",
                 "is_quoting")

    def __init__(self, flow, view):
        self.flow = flow
        self.view = view
        self.choice = None
        self.definition = None         # events.Definition
        self.is_live = False           # as it was last looked at
        self.live_ns = 0               # since when
        self.sequence = self.event_ns = self.recv_ns = 0        # of its last Book
        self.is_quoting = False


class Choice:
    """One instrument: who carries it, who is followed, what was told."""

    __slots__ = ("instrument", "carriers", "followed", "shared", "races", "venue_sequence", "told", "behind_ns",
                 "trades", "books", "quote_sequence", "quote_ns", "quoting")

    def __init__(self, instrument):
        self.instrument = instrument
        self.carriers = []
        self.followed = None           # one of the carriers, or the last one where all are gone
        self.shared = 0                # bits that all have
        self.races = 0                 # the same, where their scales are equal, too
        self.venue_sequence = 0        # of the last Book told
        self.told = None               # whose it was
        self.behind_ns = 0             # since when a live one waits that is lower
        self.trades = Recent(KNOWN_TRADES_ALONE)
        self.books = Recent(KNOWN_BOOKS)
        self.quote_sequence = self.quote_ns = 0
        self.quoting = None            # who told the last Quote

    @property
    def speaker(self):
        """Whose trades and quotes are told where there is no race."""
        return self.followed if self.followed in self.carriers else self.carriers[0]

    def compare(self):
        """Find out anew what can be compared."""
        definitions = [carrier.definition for carrier in self.carriers]
        self.shared = ~0
        for definition in definitions:
            self.shared &= definition.shared
        self.races = self.shared if len({definition[SCALE] for definition in definitions}) == 1 else 0
        self.trades.size = KNOWN_TRADES if len(definitions) > 1 else KNOWN_TRADES_ALONE


class Recent:
    """When the newest keys came: `size` of them at least, twice that at most."""

    __slots__ = ("size", "new", "old")

    def __init__(self, size):
        self.size = size
        self.new = {}
        self.old = {}

    def add(self, key, now_ns):
        self.new[key] = now_ns
        if len(self.new) >= self.size:
            self.old, self.new = self.new, {}

    def get(self, key):
        found = self.new.get(key)
        return self.old.get(key) if found is None else found


class Promise(NamedTuple):
    """A gap that was told to be covered: for each instrument of its stream another one had to bring what was in it."""

    gap: Gap
    flow: Flow
    choices: list[Choice]

    def is_kept(self):
        """True if others still do, whose books have been live since before the gap; its own stream may have ended."""
        settled_ns = self.gap.at_ns - SETTLED_NS
        return all(any(each.flow is not self.flow and each.is_live and 0 < each.live_ns <= settled_ns
                       for each in choice.carriers) for choice in self.choices)


class Arbiter:
    """`take` is fed, `instruments` are read. Args: line_names, by a line's number, for Line events."""

    def __init__(self, line_names: Sequence[str] = ()) -> None:
        self.line_names = tuple(line_names)
        self.instruments: dict[tuple[str, str], Instrument] = {}
        self.choices: dict[tuple[str, str], Choice] = {}
        self.flows: dict[tuple[int, int], Flow] = {}
        self.carriers: dict[Any, Carrier] = {}
        self.finished: deque[dict[str, Any]] = deque(maxlen=MAX_FINISHED)
        self.promises: deque[Promise] = deque(maxlen=MAX_PROMISES)
        self.switches = 0              # books that went on with another stream as theirs failed
        self.leads = 0                 # that did because another one was faster
        self.refused = 0               # messages of instruments beyond the limit
        self.undefined = 0             # of instruments whose definition has not come
        self.unreadable = 0            # trades and quotes of a newer definition, which was lost
        self.ticked_ns = 0
        self.handlers = {
            receiver.BOOK: self.on_book, receiver.TRADE: self.on_trade, receiver.BBO: self.on_quote,
            receiver.STATE: self.on_state, receiver.DEFINITION: self.on_definition, receiver.VENUE: self.on_venue,
            receiver.GAP: self.on_gap, receiver.SESSION: self.on_session, receiver.END: self.on_end,
            receiver.SILENT: self.on_silent, receiver.HEARD_AGAIN: self.on_heard_again,
            receiver.LINE_SILENT: self.on_line, receiver.LINE_BACK: self.on_line}

    def take(self, heard: Any, now_ns: int = 0) -> Sequence[Event]:
        """Return what this Heard means; to be handed over before the next one is taken: books are as of now.

        Without `now_ns` nobody races, no lag is measured and no gap is known to be covered.
        """
        return self.handlers[heard.kind](heard, now_ns)

    def tick(self, now_ns: int) -> Sequence[Event]:
        """Return what time brings; to be called once a second or more often."""
        if 0 <= now_ns - self.ticked_ns < TICK_NS:
            return NOTHING
        self.ticked_ns = now_ns
        events: list[Event] = []
        for choice in self.choices.values():
            events += self.settle(choice, "", now_ns)
        return events

    # -- books -----------------------------------------------------------------------------------------------

    def on_book(self, heard, now_ns):
        message = heard.message
        carrier = self.carriers.get(heard.view)
        if carrier is None:
            return self.join(heard, now_ns)
        carrier.sequence = heard.sequence
        carrier.event_ns = message.event_ns
        carrier.recv_ns = message.recv_ns
        choice = carrier.choice
        if not carrier.is_live or choice.followed is not carrier or choice.instrument.state != "live":
            return self.on_other_book(carrier, choice, message, now_ns)
        choice.venue_sequence = venue_sequence = message.venue_sequence
        if len(choice.carriers) > 1:
            carrier.flow.wins += 1
            choice.books.add(venue_sequence, now_ns)
        instrument = choice.instrument
        instrument.book_ns = message.recv_ns
        return (Book(instrument, carrier.definition, carrier.flow.channel, carrier.flow.session, heard.sequence,
                     venue_sequence, message.event_ns, message.recv_ns, message.type == SNAPSHOT,
                     tuple(message.bids), tuple(message.asks)),)

    def on_other_book(self, carrier, choice, message, now_ns):
        """A Book of one that is not followed, or was not live."""
        self.look(carrier, now_ns)
        followed, venue_sequence = choice.followed, message.venue_sequence
        if not carrier.is_live or followed is not carrier and choice.instrument.state != "live":
            return self.settle(choice, "", now_ns)
        if followed is carrier:
            return self.settle(choice, "", now_ns) if is_behind(choice, carrier) else self.show(choice, True)
        if not choice.races & SHARED_BOOK:
            carrier.flow.unused += 1
        elif (venue_sequence > choice.venue_sequence and 0 < carrier.live_ns <= now_ns - SETTLED_NS
              and len(carrier.view.bids) + len(carrier.view.asks) <= RACE_LEVELS):
            carrier.flow.wins += 1
            choice.books.add(venue_sequence, now_ns)
            self.leads += 1
            return self.follow(choice, carrier)
        else:
            self.was_late(carrier.flow, choice.books.get(venue_sequence), now_ns)
        return NOTHING

    def look(self, carrier, now_ns):
        """Note whether the carrier's book is live."""
        is_live = carrier.view.state == LIVE
        if is_live is not carrier.is_live:
            carrier.is_live = is_live
            carrier.live_ns = now_ns if is_live else 0
            if is_live:
                carrier.flow.live[carrier] = None
            else:
                carrier.flow.live.pop(carrier, None)

    def was_late(self, flow, first_ns, now_ns):
        flow.late += 1
        if first_ns and now_ns:
            flow.lag.add(now_ns - first_ns)

    def settle(self, choice, why, now_ns):
        """Follow somebody else if need be, and tell if what may be shown has changed. `why`: a word for Switch."""
        for carrier in choice.carriers:
            self.look(carrier, now_ns)
        followed = choice.followed
        if followed.is_live and not is_behind(choice, followed):
            return self.show(choice)
        found = self.successor(choice, now_ns)
        if found is None:
            carriers = choice.carriers
            if followed not in carriers and carriers and not any(carrier.is_live for carrier in carriers):
                return self.follow(choice, carriers[0])              # it is gone, and who is left has no book yet
            return self.show(choice)
        if found is followed:                              # it was behind for long enough
            return self.follow(choice, found)
        self.switches += 1
        flow = followed.flow
        switch = Switch(choice.instrument, flow.channel, flow.session, found.flow.channel, found.flow.session,
                        why or followed.view.reason)
        return [switch, *self.follow(choice, found)]

    def successor(self, choice, now_ns):
        """Return the carrier whose book may be shown instead of the one followed; None where there is none."""
        live = [carrier for carrier in choice.carriers if carrier.is_live]
        if not live:
            choice.behind_ns = 0
            return None
        best = live[0]
        if choice.shared & SHARED_BOOK:
            best = max(live, key=lambda carrier: carrier.view.last_venue_sequence)
        if is_behind(choice, best):
            if not choice.behind_ns:
                choice.behind_ns = now_ns
            if not (choice.behind_ns and now_ns - choice.behind_ns > BEHIND_NS):
                return None
        return best

    def follow(self, choice, carrier):
        """Show that carrier's book from now on; return what that means."""
        instrument = choice.instrument
        choice.followed = carrier
        choice.behind_ns = 0
        if carrier.is_live:
            choice.told = carrier
        instrument.view = carrier.view
        instrument.channel, instrument.session = carrier.flow.channel, carrier.flow.session
        return [*self.define(instrument, carrier.definition), *self.show(choice, True)]

    def whole(self, carrier):
        """Return the Book that is all of the carrier's."""
        choice, view, flow = carrier.choice, carrier.view, carrier.flow
        choice.told = carrier
        choice.venue_sequence = view.last_venue_sequence
        choice.instrument.book_ns = carrier.recv_ns
        return Book(choice.instrument, carrier.definition, flow.channel, flow.session, carrier.sequence,
                    view.last_venue_sequence, carrier.event_ns, carrier.recv_ns, True,
                    tuple(chain.from_iterable(view.bids.levels())), tuple(chain.from_iterable(view.asks.levels())))

    def show(self, choice, anew=False):
        """Bring the instrument's state up to date; return what that means.

        With the whole book where it became live, or, `anew`, where it is another one.
        """
        instrument, followed = choice.instrument, choice.followed
        state, reason = followed.view.state, followed.view.reason
        if state == LIVE and is_behind(choice, followed):
            state, reason = STALE, "behind"
        elif state != LIVE and reason == "none":
            reason = "no snapshot"
        name = STATE_NAMES[state]
        events = []
        if name != instrument.state or reason != instrument.reason:
            events.append(State(instrument, name, reason))
            anew = anew or instrument.state != "live"
            instrument.state, instrument.reason = name, reason
        if state != LIVE:
            instrument.is_quoted = False
        elif anew:
            events.append(self.whole(followed))
        return events

    # -- trades and quotes -----------------------------------------------------------------------------------

    def on_trade(self, heard, now_ns):
        message = heard.message
        carrier = self.carriers.get(heard.view)
        if carrier is None:
            return self.join(heard, now_ns)
        choice, flow = carrier.choice, carrier.flow
        item = message.item
        before = self.settle(choice, "", now_ns) if carrier.is_live != (heard.view.state == LIVE) else NOTHING
        definition = heard.view.definition
        if definition is None or message.edition != definition.edition:        # which was lost
            self.unreadable += 1
            return (*before, Dropped(choice.instrument, 1, "unknown scale"))
        if choice.followed is not carrier and not choice.races & SHARED_TRADE and choice.speaker is not carrier:
            flow.unused += 1
            return before
        if choice.shared & SHARED_TRADE:                   # alone, too: it may be late with what one told that ended
            first_ns = choice.trades.get(item.trade_id)
            if first_ns is not None:
                self.was_late(flow, first_ns, now_ns)
                return before
            flow.wins += len(choice.carriers) > 1
        choice.trades.add(item.trade_id, now_ns)
        instrument = choice.instrument
        instrument.last_trade = trade = Trade(
            instrument, carrier.definition, flow.channel, flow.session, heard.sequence, message.venue_sequence,
            message.event_ns, message.recv_ns, item.trade_id, item.price, item.quantity, item.side)
        return (*before, trade)

    def on_quote(self, heard, now_ns):
        message = heard.message
        carrier = self.carriers.get(heard.view)
        if carrier is None:
            return self.join(heard, now_ns)
        choice, flow = carrier.choice, carrier.flow
        carrier.is_quoting = True
        before = self.settle(choice, "", now_ns) if carrier.is_live != (heard.view.state == LIVE) else NOTHING
        definition = heard.view.definition
        if definition is None or message.edition != definition.edition:
            self.unreadable += 1
            return before                                  # a later one will tell all that this one does
        if len(choice.carriers) > 1:
            if not choice.races & SHARED_BBO:
                if choice.speaker is not carrier:
                    flow.unused += 1
                    return before
            elif (choice.quoting is not None and choice.quoting is not carrier
                    and message.venue_sequence <= choice.quote_sequence and now_ns - choice.quote_ns <= BEHIND_NS):
                same = message.venue_sequence == choice.quote_sequence
                self.was_late(flow, choice.quote_ns if same else None, now_ns)
                return before
            else:
                flow.wins += 1
        choice.quoting = carrier
        flow.quoted.add(carrier)
        choice.quote_sequence = message.venue_sequence
        choice.quote_ns = now_ns
        instrument = choice.instrument
        instrument.is_quoted = True
        instrument.last_quote = quote = Quote(
            instrument, carrier.definition, flow.channel, flow.session, heard.sequence, message.venue_sequence,
            message.event_ns, message.recv_ns, Level(*message.bid) if message.bid.quantity else None,
            Level(*message.ask) if message.ask.quantity else None)
        return (*before, quote)

    # -- instruments -----------------------------------------------------------------------------------------

    def on_definition(self, heard, now_ns):
        carrier = self.carriers.get(heard.view)
        if carrier is None:
            return self.begin(heard, now_ns)
        choice = carrier.choice
        carrier.definition = self.definition(heard, carrier.flow, choice.instrument)
        choice.compare()
        events = []
        if choice.followed is carrier:
            events += self.define(choice.instrument, carrier.definition)
        events += self.settle(choice, "", now_ns)
        return events

    def on_state(self, heard, now_ns):
        carrier = self.carriers.get(heard.view)
        if carrier is None:
            return NOTHING                                 # not defined yet
        status = heard.message
        return self.settle(carrier.choice, reason_text(status.reason) if type(status) is Status else "", now_ns)

    def join(self, heard, now_ns):
        """A view whose definition was not told here: the arbiter came later."""
        if heard.view is None or heard.view.definition is None:
            self.undefined += 1
            return NOTHING
        events = self.begin(heard, now_ns)
        if heard.kind == receiver.BOOK or heard.view not in self.carriers:
            return events
        return [*events, *self.take(heard, now_ns)]

    def begin(self, heard, now_ns):
        """A stream carries an instrument from now on."""
        if heard.stream.ended:
            return NOTHING
        view = heard.view
        key = view.venue, view.symbol
        choice = self.choices.get(key)
        events = []
        if choice is None:
            if len(self.choices) >= MAX_INSTRUMENTS:
                self.refused += 1
                return NOTHING
            choice = self.choices[key] = Choice(Instrument(*key))
            self.instruments[key] = choice.instrument
        flow = self.flow(heard.stream)
        carrier = self.carriers[view] = flow.carriers[view] = Carrier(flow, view)
        carrier.choice = choice
        carrier.definition = self.definition(heard, flow, choice.instrument)
        choice.carriers.append(carrier)
        choice.compare()
        if choice.followed is None:
            events += self.follow(choice, carrier)
        unread = view.trades - (heard.kind == receiver.TRADE)
        if unread and flow.gaps and len(choice.carriers) == 1:     # without a gap: before we joined
            events.append(Dropped(choice.instrument, unread, "no definition"))
        return [*events, *self.settle(choice, "", now_ns)]

    def definition(self, heard, flow, instrument):
        told = heard.view.definition
        return Definition(instrument, flow.channel, flow.session, heard.sequence, told.venue, told.symbol, told.name,
                          told.price_exponent, told.quantity_exponent, told.depth, told.tick, told.lot, told.shared)

    def define(self, instrument, definition):
        """Take that definition for the instrument; return it where it tells something new."""
        known = getattr(instrument, "definition", None)
        instrument.definition = definition
        if known is None:
            return (definition,)
        if known[SCALE] != definition[SCALE]:              # older integers are of another scale
            instrument.last_trade = instrument.last_quote = None
            instrument.is_quoted = False
        return (definition,) if known[TERMS] != definition[TERMS] else NOTHING

    def find(self, text: str) -> list[Instrument]:
        """Return the instruments that `text` names: SYMBOL, the common name, or venue:SYMBOL; any case."""
        wanted = text.lower()
        return [instrument for instrument in self.instruments.values() if wanted in (
            instrument.symbol.lower(), instrument.name.lower(), f"{instrument.venue}:{instrument.symbol}".lower())]

    # -- streams ---------------------------------------------------------------------------------------------

    def flow(self, stream):
        flow = self.flows.get(stream.key)
        if flow is None:
            flow = self.flows[stream.key] = Flow(*stream.key)
        return flow

    def on_session(self, heard, now_ns):
        flow = self.flow(heard.stream)
        return (Session(flow.channel, flow.session, heard.sequence),)

    def on_gap(self, heard, now_ns):
        flow, gap = self.flow(heard.stream), heard.message
        flow.gaps += 1
        flow.lost += gap.last - gap.first + 1
        covered = self.is_covered(flow, now_ns)
        flow.covered += covered
        events = []
        for carrier in list(flow.live):
            events += self.settle(carrier.choice, "gap", now_ns)
        told = Gap(flow.channel, flow.session, gap.first, gap.last, "network", covered, gap.at_ns)
        events += [*self.doubt(flow, now_ns), told]
        if covered:
            self.promises.append(Promise(told, flow, [carrier.choice for carrier in flow.carriers.values()]))
        return events

    def is_covered(self, flow, now_ns):
        """True if others carry all that this stream does."""
        return bool(flow.carriers) and all(self.covers(carrier, now_ns) for carrier in flow.carriers.values())

    def covers(self, carrier, now_ns):
        """True if what is missing of this instrument came, or comes, by another stream.

        That is one whose book has been live for long enough that it had no gap of its own at the same place; and what
        cannot be told from what was told already must not be missing from the stream that was followed.
        """
        choice = carrier.choice
        needed = SHARED_TRADE | (SHARED_BBO if carrier.is_quoting else 0)
        if choice.followed is carrier and choice.races & needed != needed:
            return False
        return any(other is not carrier and other.is_live and 0 < other.live_ns <= now_ns - SETTLED_NS
                   for other in choice.carriers)

    def doubt(self, flow, now_ns, heard_ns=None):
        """Something of the stream is missing: so may be newer quotes, and what it was to bring for others.

        Args: heard_ns, when it was heard last, where that may be longer ago than a gap is in finding.
        Returns the Gaps of others that it does not cover after all.
        """
        for carrier in flow.quoted:
            choice = carrier.choice
            if choice.quoting is carrier and not (choice.races & SHARED_BBO and choice.instrument.state == "live"):
                choice.instrument.is_quoted = False
        flow.quoted.clear()
        since_ns = now_ns - SETTLED_NS
        if heard_ns is not None:
            since_ns = min(since_ns, heard_ns - TICK_NS)
        broken = [promise for promise in self.promises
                  if promise.gap.at_ns > since_ns and promise.flow is not flow and not promise.is_kept()]
        for promise in broken:
            self.promises.remove(promise)
            promise.flow.covered -= 1
        return [promise.gap._replace(covered=False) for promise in broken]

    def on_silent(self, heard, now_ns):
        flow = self.flow(heard.stream)
        flow.is_silent = True
        events = [Silence(flow.channel, flow.session, False, self.is_covered(flow, now_ns)),
                  *self.replaced_by(flow, "silent")]
        for carrier in list(flow.live):
            events += self.settle(carrier.choice, "silent", now_ns)
        return [*events, *self.doubt(flow, now_ns, heard.stream.heard_ns)]

    def on_heard_again(self, heard, now_ns):
        flow = self.flow(heard.stream)
        flow.is_silent = False
        events = [Silence(flow.channel, flow.session, True, self.is_covered(flow, now_ns))]
        for carrier in list(flow.carriers.values()):
            events += self.settle(carrier.choice, "", now_ns)
        return events

    def on_end(self, heard, now_ns):
        return self.finish(self.flow(heard.stream), "end" if heard.message.ended else "replaced", now_ns, heard.stream.heard_ns)

    def finish(self, flow, why, now_ns, heard_ns):
        """The stream is over: nothing of it is of use any more."""
        events = [SessionEnded(flow.channel, flow.session, why, self.is_covered(flow, now_ns)),
                  *self.replaced_by(flow, why)]
        self.finished.append(flow.report())
        self.flows.pop((flow.channel, flow.session), None)
        for view, carrier in flow.carriers.items():
            choice = carrier.choice
            choice.carriers.remove(carrier)
            if choice.carriers:
                choice.compare()
            else:                                          # nobody is left who could be late
                choice.told = choice.quoting = None
                choice.trades = Recent(KNOWN_TRADES_ALONE)
            self.carriers.pop(view, None)
            carrier.is_live = False
            events += self.settle(choice, why, now_ns)
        return [*events, *self.doubt(flow, now_ns, heard_ns)]

    def replaced_by(self, flow, why):
        """Return the Switch of a whole stream: to the one that carries something of it and is live, if there is one."""
        for carrier in flow.carriers.values():
            for other in carrier.choice.carriers:
                if other is not carrier and other.view.state == LIVE:
                    to = other.flow
                    return (Switch(None, flow.channel, flow.session, to.channel, to.session, why),)
        return NOTHING

    def on_line(self, heard, now_ns):
        line = heard.message.line
        name = self.line_names[line] if 0 <= line < len(self.line_names) else str(line)
        return (Line(line, name, heard.kind == receiver.LINE_BACK),)

    def on_venue(self, heard, now_ns):
        status = heard.message
        reason = reason_text(status.reason)
        return (Venue(status.venue, bool(status.connected), reason, status.text, *heard.stream.key),)

    def report(self) -> dict[str, Any]:
        """Return who was how good, JSON-ready."""
        return {"streams": [flow.report() for flow in self.flows.values()], "finished": list(self.finished),
                "instruments": len(self.instruments),
                "live": sum(instrument.is_live for instrument in self.instruments.values()),
                "switches": self.switches, "leads": self.leads, "refused": self.refused, "undefined": self.undefined,
                "unreadable": self.unreadable}


def is_behind(choice, carrier):
    """True if its book is of a time before the one that was told, by another."""
    told = choice.told
    return (told is not None and told is not carrier and carrier.view.last_venue_sequence < choice.venue_sequence
            and bool(told.definition.shared & carrier.definition.shared & SHARED_BOOK))


def reason_text(code):
    return REASONS[code] if code < len(REASONS) else str(code)
