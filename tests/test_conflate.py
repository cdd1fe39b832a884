"""The conflator: what is left is a subsequence of what happened, and whoever applies its Books has the right ones."""

import random

import pytest
from test_arbiter import ALL, Consumer, Feed, Pair, Exchange, kinds, of

from feeder.clock import SECOND
from feeder.conflate import Conflator
from feeder.events import Book, Dropped, Gap, Line, Trade


@pytest.fixture
def venue():
    return Exchange(random.Random(11))


def test_the_newest_of_each_instrument_and_all_trades(venue):
    feed, consumer, conflator = Feed(venue, 1), Consumer(venue), Conflator()
    told = consumer.hear(feed.open())
    for event in told:
        conflator.add(event)
    assert conflator.take() == told and len(conflator) == 0           # nothing to merge
    for turn in range(10):
        for event in consumer.hear(feed.event(0, venue.event(0)) + feed.trade(0, turn) + feed.quote(0, turn)):
            conflator.add(event)
    for event in consumer.hear(feed.event(1, venue.event(1))):
        conflator.add(event)
    events = conflator.take()
    assert kinds(events) == ["Trade"] * 9 + ["Book", "Trade", "Quote", "Book"]
    assert conflator.merged == 18
    first, second = of(Book, events)
    assert first.is_snapshot and first.bids == first.instrument.bids() and first.asks == first.instrument.asks()
    assert first.venue_sequence == first.instrument.venue_sequence
    assert not second.is_snapshot                                        # it was the only one
    assert conflator.take() == []


def test_a_book_that_is_not_live_any_more_is_not_handed_over(venue):
    feed, consumer, conflator = Feed(venue, 1), Consumer(venue), Conflator()
    consumer.hear(feed.open())
    for event in consumer.hear(feed.event(0, venue.event(0)) + feed.stale(0)):
        conflator.add(event)
    assert kinds(conflator.take()) == ["State"]
    feed.snapshot(0)
    for event in consumer.hear(feed.flush() + feed.event(0, venue.event(0)) + feed.stale(0)):
        conflator.add(event)
    feed.snapshot(0)
    for event in consumer.hear(feed.flush()):
        conflator.add(event)
    assert kinds(conflator.take()) == ["State", "Book"]


def test_what_does_not_fit_is_told(venue):
    feed, consumer, conflator = Feed(venue, 1), Consumer(venue), Conflator(5)
    consumer.hear(feed.open())
    for number in range(8):
        for event in consumer.hear(feed.trade(number % 2, number)):
            conflator.add(event)
    events = conflator.take()
    assert [event.trade_id for event in events[:5]] == [0, 1, 2, 3, 4]
    one, other = (consumer.arbiter.find(symbol)[0] for symbol in venue.symbols)
    assert events[5:] == [Dropped(one, 1, "reader behind"), Dropped(other, 2, "reader behind")]
    assert conflator.dropped == 3


def test_gaps_beyond_the_bound_become_one():
    conflator = Conflator(2)
    gaps = [Gap(0, 1, number, number, "network", number != 5, number) for number in range(1, 20, 2)]
    for gap in gaps:
        conflator.add(gap)
    assert conflator.take() == gaps[:2] + [Gap(0, 1, 5, 19, "network", False, 19)]


def test_lines_by_their_newest_word():
    conflator = Conflator()
    for is_up in (False, True, False):
        conflator.add(Line(0, "a", is_up))
        conflator.add(Line(1, "b", not is_up))
    assert conflator.take() == [Line(0, "a", False), Line(1, "b", True)]


@pytest.mark.parametrize("seed", range(10))
def test_the_books_of_a_reader_who_comes_seldom(seed):
    """Consumer holds its own books, made of what is left, against the instruments'."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    venue = Exchange(dice)
    pair = Pair(venue, dice.choice((0, ALL)), settled=False)
    pair.consumer.is_monotonic = False                    # what is late for BEHIND_NS may go back
    reader, conflator = Consumer(), Conflator()
    reader.is_monotonic = False
    reader.arbiter = pair.consumer.arbiter
    for event in pair.consumer.events:
        conflator.add(event)
    taken = []
    for _ in range(400):
        at, feed = dice.randrange(2), dice.choice((pair.a, pair.b))
        other = pair.b if feed is pair.a else pair.a
        what = dice.random()
        sent = []
        if what < 0.6:
            event = venue.event(at)
            sent = [(feed, feed.event(at, event)), (other, other.event(at, event))]
        elif what < 0.7:
            number = venue.trade(at)
            sent = [(feed, feed.trade(at, number)), (other, other.trade(at, number))]
        elif what < 0.75:
            sent = [(feed, feed.stale(at))]
        elif what < 0.85:
            feed.snapshot(at)
            sent = [(feed, feed.flush())]
        elif what < 0.95:
            for event in pair.consumer.wait(dice.choice((1, SECOND))):
                conflator.add(event)
            sent = [(feed, feed.heartbeat())]
        for sender, datagrams in sent:
            if dice.random() > 0.02:
                for event in pair.hear(sender, datagrams):
                    conflator.add(event)
        if dice.random() < 0.2:
            events = conflator.take()
            for event in events:
                reader.check(event)
            reader.check_instruments()
            taken += events
    assert len(of(Book, taken)) < len(of(Book, pair.consumer.events))
    assert of(Trade, taken) == of(Trade, pair.consumer.events)[:len(of(Trade, taken))]
