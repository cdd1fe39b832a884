"""For a reader that is behind: of each instrument the newest, of trades all that fit, and what did not fit is told.

In:   public events (events.py), as they happen.   Out: fewer of them, in order, when the reader comes for them.

What take() returns is what was added, less what something newer has replaced:

    Book, Quote, State, Definition ...    the newest of each instrument, at its place; `merged` counts the older ones
    Trade                                 all, up to `bound`; then a Dropped of the instrument, counting
    Gap                                   all, up to `bound`; then the last one of its stream is widened

A Book in whose place there were several is the whole book, with is_snapshot. It is read from the instrument when the
reader comes: nothing may happen to the books between the last add() and the take() but what was added.
Not here: threads, waiting.
"""

from itertools import chain

from feeder.events import (Book, Definition, Dropped, Event, Gap, Line, Quote, Session, SessionEnded, Silence, State,
                           Switch, Trade, Venue)

BOUND = 10_000

# What makes two events of a kind the same thing, so that the newer one replaces the older.
KEYS = {
    **dict.fromkeys((Book, Quote, State, Definition, Switch), lambda event: event.instrument),
    Dropped: lambda event: (event.instrument, event.reason),
    **dict.fromkeys((Session, SessionEnded, Silence), lambda event: (event.channel, event.session)),
    Line: lambda event: event.line,
    Venue: lambda event: (event.venue, event.channel, event.session)}


class Conflator:
    """Args: bound, of trades that are kept, and of gaps."""

    def __init__(self, bound: int = BOUND) -> None:
        self.bound = bound
        self.merged = 0                # events that newer ones replaced
        self.dropped = 0               # trades
        self.clear()

    def clear(self):
        self.pending = {}              # key -> event, oldest first
        self.replaced = set()          # instruments whose Book stands for several
        self.number = 0                # of a trade or gap, as its key
        self.trade_count = self.gap_count = 0

    def __len__(self) -> int:
        return len(self.pending)

    def add(self, event: Event) -> None:
        kind = type(event)
        if kind is Trade:
            if self.trade_count < self.bound:
                self.trade_count += 1
                self.append(event)
            else:
                self.dropped += 1
                self.put(Dropped, Dropped(event.instrument, 1, "reader behind"))
        elif kind is Gap:
            self.add_gap(event)
        else:
            if kind is State and not event.is_live:
                self.merged += self.pending.pop((Book, event.instrument), None) is not None     # the next one is whole
            self.put(kind, event)

    def append(self, event):
        self.number += 1
        self.pending[self.number] = event

    def put(self, kind, event):
        """Add the event at the end, in the place of an older one."""
        key = kind, KEYS[kind](event)
        older = self.pending.pop(key, None)
        if older is not None:
            if kind is Dropped:
                event = event._replace(trade_count=older.trade_count + event.trade_count)
            else:
                self.merged += 1
            if kind is Book:
                self.replaced.add(event.instrument)
        self.pending[key] = event

    def add_gap(self, gap):
        key = Gap, (gap.channel, gap.session)
        if self.gap_count < self.bound:
            self.gap_count += 1
            self.append(gap)
            return
        older = self.pending.pop(key, gap)
        self.pending[key] = gap._replace(first=min(older.first, gap.first), last=max(older.last, gap.last),
                                         covered=older.covered and gap.covered)

    def take(self) -> list[Event]:
        """Return what is there, oldest first, and begin anew."""
        events = list(self.pending.values())
        replaced = self.replaced
        self.clear()
        if not replaced:
            return events
        return [whole(event) if type(event) is Book and not event.is_snapshot and event.instrument in replaced
                else event for event in events]


def whole(book):
    """Return the Book with all levels that its instrument has now."""
    instrument = book.instrument
    return book._replace(is_snapshot=True, flat_bids=tuple(chain.from_iterable(instrument.last_known_bids())),
                         flat_asks=tuple(chain.from_iterable(instrument.last_known_asks())))
