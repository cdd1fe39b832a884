"""Who follows a receiver and objects: each number is accounted for, no book is shown live that is not the publisher's.

A Judge has a cursor a stream. Every number that the stream passes was either *given* to the receiver or is in a Gap,
never both; what was given is handed on once and in order; what is shown LIVE is the Ledger's, and what is in step is
shown LIVE.
A Desk does the same for what arbiter.py makes of it.
"""

from collections import Counter

from truth import (BBO_TYPE, DEFINITION_TYPE, END, INCREMENT_TYPE, LAST, NOBODY, PADDING_TYPE, REFRESH, SNAPSHOT_TYPE,
                   SNAPSHOTS, STATUS_TYPE, TRADE_TYPE, head_of, is_other, text_of)

from feeder import events, receiver as receiving
from feeder.message import LIVE
from feeder.packet import Book

SECOND = 10**9
START = 1_700_000_000 * SECOND
SILENCE_NS = 3 * SECOND
TICK_NS = SECOND // 2                    # how often receivers are told the time when they ask for nothing else


class Failure(AssertionError):
    """What a judge found, with the seed that brings it again."""


def wrong_book(view, version):
    """Return what is wrong with a view that is shown live, None where it is the ledger's."""
    definition = view.definition
    if not version.is_live:
        return "not live at the publisher"
    if view.epoch != version.epoch:
        return f"epoch {view.epoch}, not {version.epoch}"
    if definition[1:] != version.definition:
        return f"{definition}, not {version.definition}"
    for side, (keys, quantities), name in ((view.bids, version.bids, "bids"), (view.asks, version.asks, "asks")):
        if side.keys != keys or side.quantities != quantities:
            return f"{name} {list(zip(side.keys, side.quantities))}, not {list(zip(keys, quantities))}"
    return None


class Course:
    """What a judge knows of one stream at one receiver. Numbers below `cursor` are settled: handed on, or in a gap."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.cursor = None              # while it is not open
        self.settled = 0                # as far as it ever was
        self.clear_from = 0             # no gap since
        self.given = {}                 # number -> when it was first given to the receiver
        self.highest = 0                # of what was given
        self.heard_ns = 0               # a packet of the sequence by any line
        self.is_ended = False
        self.in_step = {}               # instrument -> epoch
        self.told = {}                  # instrument -> the body of its newest definition
        self.defined_from = {}          # instrument -> where it was told
        self.missed = set()             # numbers in gaps
        self.given_up = set()           # numbers that nobody can send again

    def give(self, head, now_ns):
        for number in range(head.sequence, head.sequence + head.count):
            self.given.setdefault(number, now_ns)
        # A packet without messages tells that all below its number was sent.
        self.highest = max(self.highest, head.sequence + head.count - 1)
        self.is_ended = self.is_ended or bool(head.flags & END)

    def follow(self, fact):
        """Any message of an instrument tells its edition, state and epoch."""
        known = self.told.get(fact.instrument_id)
        if known is not None and known[-1] != fact.flags >> 5:
            del self.told[fact.instrument_id]          # the one that is in force was lost
            self.in_step.pop(fact.instrument_id, None)
        if fact.state != LIVE or self.in_step.get(fact.instrument_id) != fact.epoch:
            self.in_step.pop(fact.instrument_id, None)

    def define(self, instrument_id, body):
        known = self.told.get(instrument_id)
        self.told[instrument_id] = body
        self.defined_from[instrument_id] = self.cursor
        if known is not None and is_other(known, body):
            self.in_step.pop(instrument_id, None)


class Judge:
    """Follows one receiver; raises Failure at the first thing that is wrong.

    Args:   ledgers: (channel, session) -> Ledger, of all hosts; hold_ns as the receiver has it.
    """

    def __init__(self, name, world, receiver, ledgers, hold_ns):
        self.name = name
        self.world = world
        self.receiver = receiver
        self.ledgers = ledgers
        self.hold_ns = hold_ns
        self.courses = {}
        self.sessions = {}              # (line, channel) -> the session that the line brought last
        self.may_open = None            # ((channel, session), numbers to begin at) by the datagram in work
        self.event_count = self.lost = self.live_looks = self.gap_count = 0

    def fail(self, text):
        raise Failure(f"seed {self.world.seed} at {(self.world.now_ns - START) / SECOND:.6f} s, {self.name}: {text}")

    def check(self, is_true, text, *more):
        if not is_true:
            self.fail(text.format(*more))

    # -- what the receiver is given --------------------------------------------------------------------------

    def give(self, line, datagram):
        """Note a good datagram before the receiver has it; line None: it was asked for."""
        head = head_of(datagram)
        key = head.channel, head.session
        now_ns = self.world.now_ns
        course = self.courses.get(key)
        if course is None:
            course = self.courses[key] = Course(self.ledgers[key])
        self.may_open = None
        if line is not None:
            before = self.sessions.get((line, head.channel))
            is_loop = head.flags & SNAPSHOTS
            self.may_open = key, {head.sequence} if before in (None, head.session) or is_loop else {1}
            if not is_loop and self.may_move(head, before):
                self.sessions[line, head.channel] = head.session
                course.heard_ns = now_ns
        if not head.flags & SNAPSHOTS:
            course.give(head, now_ns)

    def may_move(self, head, before):
        """A line goes on to a greater session; to a lower one where the one before has ended, or was silent."""
        if before is None or head.session >= before:
            return True
        course = self.courses[head.channel, before]
        return course.is_ended or self.world.now_ns - course.heard_ns > SILENCE_NS

    def is_left(self, key):
        """No line brings it any more."""
        return not any((channel, session) == key for (_, channel), session in self.sessions.items())

    # -- what it hands on ------------------------------------------------------------------------------------

    def take(self, heard):
        self.event_count += 1
        kind = heard.kind
        if heard.stream is None:
            return                      # about lines
        key = heard.stream.key
        course = self.courses.get(key)
        if kind == receiving.SESSION:
            self.open(key, course, heard.sequence)
            return
        self.check(course is not None and course.cursor is not None, "{} of {}, which is not open", heard, key)
        if kind == receiving.GAP:
            self.gap(key, course, heard.message)
        elif kind in TOLD_AS:
            self.message(key, course, heard)
            self.look(key, course, heard.stream)

    def open(self, key, course, first):
        self.check(self.may_open is not None and self.may_open[0] == key, "{} begins, told by nobody", key)
        self.check(first in self.may_open[1], "{} begins at {}, not at {}", key, first, self.may_open[1])
        self.check(course.settled == 0 or first <= course.settled,
                   "{} begins again at {}, nobody tells what is missing since {}", key, first, course.settled)
        course.cursor = course.clear_from = first
        course.heard_ns = max(course.heard_ns, self.world.now_ns)      # by the loop alone
        course.in_step.clear()
        course.told.clear()

    def gap(self, key, course, gap):
        now_ns = self.world.now_ns
        self.check((gap.channel, gap.session) == key, "{} in stream {}", gap, key)
        self.check(course.cursor <= gap.first <= gap.last, "{}, but all below {} is settled", gap, course.cursor)
        self.pass_by(key, course, gap.first)
        numbers = range(gap.first, gap.last + 1)
        self.check(gap.last <= course.highest, "{}, but nothing was heard behind {}", gap, course.highest)
        for number in numbers:
            self.check(number not in course.given, "{} is in {}, but came at {}", number, gap, course.given.get(number))
        if self.hold_ns and not course.given_up.issuperset(numbers) and not self.is_left(key):
            since_ns = min((at_ns for number, at_ns in course.given.items() if number > gap.last), default=0)
            self.check(now_ns - since_ns >= self.hold_ns, "{} after {} ns, the hold is {}", gap, now_ns - since_ns,
                       self.hold_ns)
        course.cursor = course.clear_from = gap.last + 1
        course.missed.update(numbers)
        course.in_step.clear()
        self.gap_count += 1
        self.lost += len(numbers)

    def pass_by(self, key, course, stop):
        """Settle what the stream has passed without a word: cursor .. stop - 1."""
        for number in range(course.cursor, stop):
            fact = course.ledger.facts.get(number)
            self.check(number in course.given, "{}: {} {} was passed, but never came, in no gap", key, number, fact)
            self.check(self.may_be_silent(course, fact), "{}: {} {} was not handed on", key, number, fact)
            course.cursor = number + 1

    def may_be_silent(self, course, fact):
        kind, instrument_id = fact.kind, fact.instrument_id
        if kind == PADDING_TYPE:
            return True
        if kind == DEFINITION_TYPE:
            return course.told.get(instrument_id) == fact.body
        if instrument_id == NOBODY:
            return False
        was_in_step = course.in_step.get(instrument_id) == fact.epoch and fact.state == LIVE
        course.follow(fact)
        if instrument_id not in course.told or not fact.flags & LAST:
            return True                 # nobody can read its numbers; or more is to come
        if kind == INCREMENT_TYPE:
            return not was_in_step
        if kind == SNAPSHOT_TYPE:       # a repetition, or the end of one that is not whole
            return (bool(fact.flags & REFRESH) and was_in_step
                    or fact.begin < max(course.clear_from, course.defined_from.get(instrument_id, 0)))
        return kind == STATUS_TYPE

    def message(self, key, course, heard):
        """One message of the sequence, or what the snapshot loop brought, which stands beside it."""
        kind, number, message = heard.kind, heard.sequence, heard.message
        fact = course.ledger.facts.get(number)
        instrument_id = message.instrument_id
        is_fact = fact is not None and fact.kind in TOLD_AS[kind] and fact.instrument_id == instrument_id and (
            kind != receiving.STATE or isinstance(message, Book) == (fact.kind != STATUS_TYPE)) and (
            bool(fact.flags & REFRESH) == bool(message.flags & REFRESH) if isinstance(message, Book)
            else number in course.given)
        if not is_fact and kind in (receiving.BOOK, receiving.DEFINITION, receiving.STATE):
            return self.from_loop(key, course, heard)
        self.check(is_fact, "{} is told, it was {}", heard, fact)
        self.check(number in course.given, "{} is told, but never came", heard)
        if kind == receiving.DEFINITION and number in course.missed and instrument_id not in course.told:
            # A late one is of use where nothing is known yet (docs/protocol.md, Sequence), and nothing newer may be.
            self.check(course.ledger.version(instrument_id, course.cursor).definition == fact.body, "{} is told, late",
                       heard)
            return course.define(instrument_id, fact.body)
        self.check(number >= course.cursor, "{} is told, but all below {} is settled", heard, course.cursor)
        self.pass_by(key, course, number)
        course.cursor = number + 1
        definition = heard.view.definition if instrument_id != NOBODY else None
        if definition is not None and definition.edition == fact.flags >> 5:      # else nobody may read its numbers
            true = course.ledger.version(instrument_id, number + 1).definition
            self.check(true == definition[1:], "{} is told with {}, not {}", heard, definition, true)
        if kind != receiving.STATE or fact.kind == STATUS_TYPE:
            self.check(plain(kind, message) == plain_fact(kind, fact), "{} is told, it was {}", heard, fact)
        if kind == receiving.DEFINITION:
            course.define(instrument_id, fact.body)
        elif kind == receiving.BOOK:
            self.check(fact.begin >= course.clear_from, "{} is told, but it is not whole: no gap only since {}", heard,
                       course.clear_from)
            if fact.kind == SNAPSHOT_TYPE:
                course.in_step[instrument_id] = fact.epoch
            else:
                self.check(course.in_step.get(instrument_id) == fact.epoch, "{} is told, but its book was out of step",
                           heard)
        elif instrument_id != NOBODY:
            course.follow(fact)
        return None

    def from_loop(self, key, course, heard):
        kind, number, message = heard.kind, heard.sequence, heard.message
        self.check(number >= course.cursor, "{} is told, but all below {} is settled", heard, course.cursor)
        self.pass_by(key, course, number)
        version = course.ledger.version(message.instrument_id, number)
        if kind == receiving.DEFINITION:
            self.check(plain(kind, message) == version.definition, "{} is told, it is {}", heard, version.definition)
            course.define(message.instrument_id, version.definition)
        elif kind == receiving.BOOK:
            self.check(message.flags & REFRESH and message.type == SNAPSHOT_TYPE, "{} is told, and was nowhere", heard)
            self.check(version.is_live, "{} is told, but is not live at the publisher", heard)
            course.in_step[message.instrument_id] = version.epoch
        else:
            self.check(not version.is_live, "{} is told, but is live at the publisher", heard)
            course.in_step.pop(message.instrument_id, None)

    # -- what it shows ---------------------------------------------------------------------------------------

    def look(self, key, course, stream):
        """What is live is right, and what is right is live, as of the cursor."""
        is_dark = stream.silent or stream.ended
        for view in stream.views.values():
            is_live = view.state == LIVE
            should = not is_dark and view.instrument_id in course.in_step
            if is_live != should:
                self.fail(f"{key} {view.label} is {view.state} ({view.reason}) at {course.cursor}, live would be "
                          f"{should}")
            if is_live:
                self.live_looks += 1
                wrong = wrong_book(view, course.ledger.version(view.instrument_id, course.cursor))
                if wrong:
                    self.fail(f"{key} {view.label} is shown live at {course.cursor}, but is wrong: {wrong}")

    def check_wanted(self, wanted):
        """What is asked for is missing, something behind it is here, and it was not given up."""
        for channel, session, first, last in wanted:
            course = self.courses[channel, session]
            self.check(course.cursor <= first <= last <= course.highest, "{} to {} of {} is wanted, at {}", first, last,
                       (channel, session), course.cursor)
            self.check(not any(number in course.given for number in range(first, last + 1)),
                       "{} to {} is wanted, and here", first, last)

    def settle(self):
        """The receiver is done with what it was given."""
        now_ns, streams = self.world.now_ns, self.receiver.streams
        for key, stream in streams.items():
            course = self.courses[key]
            self.pass_by(key, course, stream.expected)
            self.look(key, course, stream)
            quiet_ns = now_ns - course.heard_ns
            is_held = course.cursor <= course.highest            # what is new waits behind a gap, and is not heard yet
            self.check(not stream.silent or is_held or quiet_ns > SILENCE_NS, "{} is silent after {} ns", key, quiet_ns)
            self.check(stream.silent or stream.ended or quiet_ns <= SILENCE_NS + TICK_NS, "{} is heard after {} ns",
                       key, quiet_ns)
            self.check(not stream.ended or course.is_ended, "{} has ended, nobody said so", key)
            if course.cursor <= course.highest and course.cursor not in course.given:
                since_ns = min((course.given[number] for number in range(course.cursor, course.highest + 1)
                                if number in course.given), default=now_ns)
                self.check(now_ns - since_ns <= self.hold_ns, "{}: {} is waited for since {} ns, the hold is {}", key,
                           course.cursor, now_ns - since_ns, self.hold_ns)
        for key, course in self.courses.items():
            if course.cursor is not None and key not in streams:
                course.settled, course.cursor = course.cursor, None


def plain(kind, message):
    """What a message says, as a ledger would have it."""
    if kind == receiving.BOOK:
        return (message.type, tuple(message.bids), tuple(message.asks), message.epoch, message.venue_sequence,
                message.event_ns)
    if kind == receiving.DEFINITION:
        return message[1:]
    if kind == receiving.TRADE:
        return tuple(message.item)
    if kind == receiving.BBO:
        return (*message.bid, *message.ask)
    return message.reason, message.connected, message.venue, message.text, message.state, message.epoch


def plain_fact(kind, fact):
    body = fact.body
    if kind == receiving.BOOK:
        return fact.kind, tuple(body[0]), tuple(body[1]), fact.epoch, fact.venue_sequence, fact.event_ns
    if kind in (receiving.DEFINITION, receiving.TRADE, receiving.BBO):
        return body
    return (body[0], body[1], *map(text_of, body[4:]), fact.state, fact.epoch)


# What each kind of Heard may have been on the wire.
TOLD_AS = {receiving.BOOK: (SNAPSHOT_TYPE, INCREMENT_TYPE), receiving.TRADE: (TRADE_TYPE,), receiving.BBO: (BBO_TYPE,),
           receiving.STATE: (STATUS_TYPE, SNAPSHOT_TYPE, INCREMENT_TYPE), receiving.VENUE: (STATUS_TYPE,),
           receiving.DEFINITION: (DEFINITION_TYPE,)}


class Desk:
    """Follows the public events of one consumer, as its user would; the judge knows where each stream is.

    Whoever applies every Book has the instrument's book, which is the ledger's; what was told by State is what holds;
    each trade comes once; a gap that is called covered hides no trade.
    """

    def __init__(self, judge, market, arbiter):
        self.judge = judge
        self.coins = {(coin.venue, coin.symbol): coin for coin in market.coins}
        self.arbiter = arbiter
        self.books = {}                 # instrument -> ({price: quantity}, {price: quantity}) as its Books told
        self.states = {}                # instrument -> the last State told
        self.sequences = {}             # instrument -> [venue sequence of each Book]
        self.trades = {}                # instrument -> {trade id: how often it was told}
        self.handed = {}                # (venue, symbol) -> trade ids that a stream handed on, with a known scale
        self.gaps = {}                  # (channel, session, first, last) -> covered
        self.switches = []
        self.counts = Counter()

    def hear(self, heard):
        now_ns = self.judge.world.now_ns
        view = heard.view
        definition = view.definition if heard.kind == receiving.TRADE else None
        if definition is not None and definition.edition == heard.message.edition:
            self.handed.setdefault((view.venue, view.symbol), set()).add(heard.message.item.trade_id)
        self.take_all(self.arbiter.take(heard, now_ns))

    def tick(self):
        self.take_all(self.arbiter.tick(self.judge.world.now_ns))

    def take_all(self, told):
        for event in told:
            self.take(event)

    def take(self, event):
        kind = type(event)
        self.counts[kind.__name__] += 1
        if kind is events.State:
            self.states[event.instrument] = event.state
        elif kind is events.Book:
            self.on_book(event)
        elif kind is events.Trade:
            self.on_trade(event)
        elif kind is events.Gap:
            self.gaps[event[:4]] = event.covered
        elif kind is events.Switch:
            self.switches.append(event)

    def on_book(self, event):
        judge, instrument = self.judge, event.instrument
        sides = self.books.setdefault(instrument, ({}, {}))
        for side, flat in zip(sides, (event.flat_bids, event.flat_asks)):
            if event.is_snapshot:
                side.clear()
            for price, quantity in zip(flat[::2], flat[1::2]):
                if quantity:
                    side[price] = quantity
                else:
                    side.pop(price, None)
        judge.check(self.states.get(instrument) == "live" and instrument.is_live, "{} while {}", event, instrument)
        sequences = self.sequences.setdefault(instrument, [])
        if self.coins[instrument.venue, instrument.symbol].shared and sequences:
            judge.check(event.venue_sequence >= sequences[-1], "{} after {}: back in time", event, sequences[-1])
        sequences.append(event.venue_sequence)
        self.look(instrument)

    def on_trade(self, event):
        judge, instrument = self.judge, event.instrument
        fact = judge.ledgers[event.channel, event.session].facts[event.sequence]
        told = event.trade_id, event.price, event.quantity, event.side
        judge.check(fact.body == told, "{}, it was {}", event, fact)
        trades = self.trades.setdefault(instrument, Counter())
        trades[event.trade_id] += 1

    def look(self, instrument):
        """What is shown live is what was told, and right."""
        judge = self.judge
        course = judge.courses[instrument.channel, instrument.session]
        version = course.ledger.version(course.ledger.ids[instrument.venue, instrument.symbol], course.cursor)
        judge.check(version.is_live, "{} is live, at the publisher it is not", instrument)
        shown = instrument.bids(), instrument.asks()
        sides = version.bids, version.asks
        for levels, told, (keys, quantities), sign in zip(shown, self.books[instrument], sides, (-1, 1)):
            judge.check(dict(levels) == told and len(levels) == len(told), "{} shows {}, and was told {}", instrument,
                        levels, told)
            judge.check(levels == [(sign * key, quantity) for key, quantity in zip(keys, quantities)],
                        "{} shows {}, the publisher has {}", instrument, levels, version)

    def settle(self):
        """All is told."""
        for instrument in self.arbiter.instruments.values():
            state = self.states.get(instrument, "syncing")
            self.judge.check(state == instrument.state and (state == "live") == instrument.is_live,
                             "{} was told to be {}, and is {}", instrument, state,
                             (instrument.state, instrument.is_live))

    def reckon(self):
        """What is shown in the end is right; each trade that a stream handed on was told; a covered gap hides none."""
        check = self.judge.check
        for instrument in self.arbiter.instruments.values():
            check(instrument.is_live, "{} is not live in the end: {}", instrument, instrument.reason)
            self.look(instrument)
        told = {(instrument.venue, instrument.symbol): trades for instrument, trades in self.trades.items()}
        for key, handed in self.handed.items():
            scales = {version.definition[3:5] for ledger in self.judge.ledgers.values() if key in ledger.ids
                      for version in ledger.versions[ledger.ids[key]][1]}
            if self.coins[key].shared and len(scales) == 1:       # else there is no race
                left = handed.difference(told.get(key, ()))
                check(not left, "trades {} of {} came, and were not told", left, key)
                twice = [number for number, count in told.get(key, {}).items() if count > 1]
                check(not twice, "trades {} of {} were told twice", twice, key)
        for (channel, session, first, last), covered in self.gaps.items():
            ledger = self.judge.ledgers[channel, session]
            for fact in map(ledger.facts.get, range(first, last + 1)) if covered else ():
                if fact.kind == TRADE_TYPE:
                    key = ledger.names[fact.instrument_id]
                    number = fact.body[0] - ledger.offsets[key]
                    check(any(number + offset in told.get(key, ()) for offset in self.offsets(key)),
                          "trade {} of {} is in a covered gap, and was not told", number, key)

    def offsets(self, key):
        return {ledger.offsets[key] for ledger in self.judge.ledgers.values()}
