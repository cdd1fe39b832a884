"""A connection's texts, acknowledgements, pings and books sent anew, against a Stub that speaks Bybit as a test wants it.

Two lines that bring the same are in test_recovery (which of them counts) and test_venue_live (over the twin).
"""

import json
import logging
from contextlib import contextmanager

import pytest
from test_ingest import desk, stub

from feeder import ingest, line
from feeder.clock import MILLISECOND, SECOND, steady_ns
from feeder.ingest import Hosts
from feeder.message import LIVE, STALE, SYNCING
from feeder.venue.contract import ALIVE, ERROR, REPLY, SHUTDOWN, BrokenLine, Notice, Ping
from feeder.websocket import CLOSE, TEXT

LINEAR = "bybit_linear"


def book(symbol, update, kind="snapshot", quantity="1"):
    return json.dumps({"topic": f"orderbook.200.{symbol}", "type": kind, "ts": 1672304484978, "cts": 1672304484976, "data": {
        "s": symbol, "b": [["10.5", quantity]], "a": [["10.6", "2"]], "u": update, "seq": update}}).encode()


class Bybit:
    """Answers subscriptions: acknowledged, with a snapshot for each book; `refuse` and `silent` are topics."""

    def __init__(self):
        self.update = 100
        self.refuse, self.silent = (), ()
        self.acknowledges = True
        self.requests = []               # (steady time, link, request)

    def on_text(self, link, request):
        self.requests.append((steady_ns(), link, request))
        if request["op"] == "ping":
            return link.send(TEXT, b'{"success":true,"ret_msg":"pong","conn_id":"1","op":"ping"}')
        bad = [topic for topic in request["args"] if topic in self.refuse]
        answer = {"success": not bad, "ret_msg": f"Invalid topic: {bad}" if bad else "", "op": request["op"],
                  "req_id": request["req_id"], "conn_id": "1"}
        if self.acknowledges:
            link.send(TEXT, json.dumps(answer).encode())
        if request["op"] == "subscribe" and not bad:
            for topic in request["args"]:
                if topic.startswith("orderbook.200.") and topic not in self.silent:
                    link.send(TEXT, book(topic.rpartition(".")[2], self.update))

    def asked(self, op):
        return [request["args"] for _, _, request in self.requests if request["op"] == op]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(line, "TEND_NS", 10 * MILLISECOND)
    monkeypatch.setattr(ingest, "RESUBSCRIBE_FIRST_NS", 40 * MILLISECOND)


@contextmanager
def served(symbols=("BTCUSDT", "ETHUSDT"), channels=("depth",), facts=None, **keys):
    venue = Bybit()
    with desk(LINEAR, symbols=symbols, channels=list(channels), snapshot_limit=200, **keys) as made:
        with stub(made, on_text=venue.on_text, on_get=lambda target: (503, b"", ())) as server:
            venue.stub = server
            if facts is not None:
                made.pipeline.venue(LINEAR).facts = made.pipeline.venue(LINEAR).facts._replace(**facts)
            made.start()
            yield made, venue


def test_a_gap_has_the_one_book_sent_anew():
    with served() as (made, venue):
        made.until(made.live)
        made.feed.recovery.line = made.feed.lines[0]
        venue.requests.clear()
        venue.update = 200
        venue.stub.links[0].send(TEXT, book("BTCUSDT", 102, "delta"))
        made.until(lambda: made.states() == [STALE, LIVE])
        made.until(made.live)
        assert venue.asked("unsubscribe") == venue.asked("subscribe") == [["orderbook.200.BTCUSDT"]]
        entry = made.pipeline.publisher.entries[0]
        assert entry.sequence == 200 and made.feed.row()["snapshots_requested"] == 1
        link = made.feed.recovery.link(entry.instrument)
        assert (link.gaps, link.resyncs, dict(link.reasons)) == (1, 1, {"gap": 1})


def test_the_subscription_waits_for_the_end_of_the_old_one(monkeypatch):
    monkeypatch.setattr(line, "ACK_DEADLINE_NS", SECOND // 2)
    with served() as (made, venue):
        made.until(made.live)
        venue.acknowledges = False
        made.pipeline.resync(made.feed.instruments[0], "gap", 1)
        made.until(lambda: venue.asked("unsubscribe"))
        made.spin(0.2)
        assert len(venue.asked("subscribe")) == 1, "the first one only"
        made.until(made.live)                        # given up waiting
        assert made.feed.unacknowledged == 1 and len(venue.asked("subscribe")) == 2


def test_books_that_break_together_are_asked_for_together():
    with served([f"C{number}USDT" for number in range(25)]) as (made, venue):
        made.until(made.live)
        venue.requests.clear()
        for instrument in made.feed.instruments:
            made.pipeline.resync(instrument, "gap", 1)
        made.until(made.live)
        assert [len(args) for args in venue.asked("unsubscribe")] == [10, 10, 5] == [
            len(args) for args in venue.asked("subscribe")]


def test_a_book_that_breaks_while_others_are_still_to_be_subscribed_is_asked_for_again():
    with served([f"C{number}USDT" for number in range(25)], facts={"command_every_ms": 100}) as (made, venue):
        made.until(lambda: made.states()[0] == LIVE)
        assert made.states()[-1] == SYNCING
        for instrument in made.feed.instruments[0], made.feed.instruments[-1]:
            made.feed.recovery.stale(instrument, "checksum", 1)
        made.until(made.live)
        assert venue.asked("unsubscribe") == [["orderbook.200.C0USDT"]], "the last one was on its way"


def test_a_book_that_keeps_breaking_is_asked_for_ever_more_slowly():
    with served(["BTCUSDT"], facts={"command_every_ms": 1}) as (made, venue):
        made.until(made.live)
        venue.requests.clear()
        for _ in range(5):
            made.pipeline.resync(made.feed.instruments[0], "crossed", 1)
            made.until(made.live)
        times = [at for at, _, request in venue.requests if request["op"] == "subscribe"]
        pauses = [later - earlier for earlier, later in zip(times, times[1:])]
        assert pauses[0] >= 20 * MILLISECOND and pauses[-1] >= 160 * MILLISECOND


def test_a_book_that_never_comes_costs_the_connection(monkeypatch):
    monkeypatch.setattr(ingest, "RESUBSCRIBE_DEADLINE_NS", 50 * MILLISECOND)
    with served(facts={"command_every_ms": 1}) as (made, venue):
        made.until(made.live)
        venue.silent = ["orderbook.200.BTCUSDT"]
        made.pipeline.resync(made.feed.instruments[0], "gap", 1)
        made.until(lambda: len(venue.stub.links) == 2)
        assert "BTCUSDT: no book came for the new subscription, 3 times" in made.feed.last_error
        assert made.feed.row()["snapshots_failed"] == 3


def test_a_lost_line_asks_for_nothing_and_brings_everything():
    with served() as (made, venue):
        made.until(made.live)
        venue.requests.clear()
        venue.stub.links[0].stream.abort()
        made.until(lambda: made.states() == [STALE, STALE])
        made.until(made.live)
        made.spin(0.1)
        assert venue.asked("unsubscribe") == [] and len(venue.asked("subscribe")) == 1
        assert not any(link.waiting for link in made.feed.recovery.links.values())


def test_one_bad_topic_is_found_and_named(caplog):
    symbols = [f"C{number}USDT" for number in range(8)]
    with served(symbols, facts={"command_every_ms": 1}) as (made, venue):
        venue.refuse = ["orderbook.200.C5USDT"]
        with caplog.at_level(logging.WARNING, "feeder"):
            made.until(lambda: made.states().count(LIVE) == 7)
            made.until(lambda: made.feed.refused)
        assert made.feed.row()["refused_symbols"] == {"C5USDT": "Invalid topic: ['orderbook.200.C5USDT']"}
        assert [len(args) for args in venue.asked("subscribe")] == [8, 4, 4, 2, 2, 1, 1]
        assert "C5USDT" in caplog.text and "Invalid topic" in caplog.text


def test_pings_leave_in_time_and_their_answers_are_life():
    with served(stale_after_s=0.4, facts={"ping": Ping('{"op":"ping"}', 0.1)}) as (made, venue):
        made.until(made.live)
        made.spin(1)                                 # no market data at all
        pings = [at for at, _, request in venue.requests if request["op"] == "ping"]
        assert 6 <= len(pings) <= 11 and made.feed.silences == 0 and made.live()


def test_a_venue_that_only_acknowledges_is_silent():
    with served(stale_after_s=0.3) as (made, venue):
        made.until(lambda: len(venue.stub.links) == 2)
        assert made.feed.silences == 1


def test_texts_keep_to_the_pace_and_to_the_budget_of_an_hour():
    with served([f"C{number}USDT" for number in range(45)], facts={"command_every_ms": 50, "commands_per_hour": 4}) as (
            made, venue):
        made.until(lambda: len(venue.asked("subscribe")) == 4)
        times = [at for at, _, _ in venue.requests]
        assert times[-1] - times[0] > 110 * MILLISECOND
        made.spin(0.2)
        assert len(venue.asked("subscribe")) == 4 and made.states().count(LIVE) == 40


def test_a_reply_is_sent_at_once_and_is_life():
    with served() as (made, venue):
        made.until(made.live)
        session = made.feed.lines[0].session
        session.decode = lambda payload, recv_ns: Notice(REPLY, None, '{"op":"ping"}')
        venue.requests.clear()
        before_ns = made.feed.lines[0].data_ns
        venue.stub.links[0].send(TEXT, b"test_request")
        made.until(lambda: venue.requests)
        assert venue.requests[0][2] == {"op": "ping"} and made.feed.lines[0].data_ns > before_ns
        session.decode = lambda payload, recv_ns: Notice(ALIVE, None, "")
        venue.stub.links[0].send(TEXT, b"heartbeat")
        before_ns = made.feed.lines[0].data_ns
        made.until(lambda: made.feed.lines[0].data_ns > before_ns)


def test_a_broken_line_is_made_anew_and_nothing_behind_the_break_is_read():
    with served() as (made, venue):
        made.until(lambda: made.live() and made.feed.last_error)          # of the instrument list: it comes first
        connection = made.feed.lines[0]
        seen = []

        def decode(payload, recv_ns):
            seen.append(payload)
            for instrument in made.feed.instruments:
                made.feed.recovery.stale(instrument, "gap", recv_ns)
            raise BrokenLine("numbers 5 to 7 are missing")

        connection.session.decode = decode
        link = venue.stub.links[0]
        link.stream.write(link.websocket.send(TEXT, b"1") + link.websocket.send(TEXT, b"2"))
        made.until(lambda: seen)
        del connection.session.__dict__["decode"]
        made.until(lambda: len(venue.stub.links) == 2)
        assert seen == [b"1"] and "5 to 7" in made.feed.last_error
        made.until(made.live)
        assert all(link.gaps == 1 for link in made.feed.recovery.links.values())
        assert made.feed.row()["disconnects"] == made.feed.row()["bad_messages"] == 1


def test_a_book_without_news_is_asked_for_where_the_venue_promises_some():
    with served(freshness_s=0.2, stale_after_s=30) as (made, venue):
        made.until(made.live)
        venue.requests.clear()
        update = 100
        while made.feed.stale_books == 0:            # one of them has news
            update += 1
            venue.stub.links[0].send(TEXT, book("ETHUSDT", update, "delta"))
            made.spin(0.05)
        made.until(made.live)
        assert venue.asked("unsubscribe") == [["orderbook.200.BTCUSDT"]] and "BTCUSDT: no update for 0.2 s" in (
            made.feed.last_error)
        link = made.feed.recovery.link(made.feed.instruments[0])
        assert dict(link.reasons) == {"silent": 1} and link.gaps == 0


def test_a_successor_that_is_lost_leaves_the_old_line_alone(monkeypatch):
    monkeypatch.setattr(line, "SETTLE_NS", 10 * SECOND)
    with served() as (made, venue):
        made.until(made.live)
        first = made.feed.lines[0]
        first.replace("a test")
        made.until(lambda: len(venue.stub.links) == 2)
        made.until(lambda: all(made.feed.recovery.link(each).line is first.successor for each in made.feed.instruments))
        venue.stub.links[1].stream.abort()
        made.until(lambda: len(venue.stub.links) == 3)
        assert made.live() and made.feed.lines == [first]
        venue.stub.links[0].send(TEXT, book("BTCUSDT", 101, "delta", "7"))
        made.until(lambda: made.pipeline.publisher.entries[0].sequence == 101)


def test_an_old_line_that_is_lost_before_costs_only_what_the_successor_has_not():
    with served() as (made, venue):
        made.until(made.live)
        first = made.feed.lines[0]
        venue.silent = ["orderbook.200.ETHUSDT"]
        first.replace("a test")
        made.until(lambda: made.feed.recovery.link(made.feed.instruments[0]).line is first.successor)
        venue.stub.links[0].stream.abort()
        made.until(lambda: made.states() == [LIVE, STALE])
        made.until(lambda: made.feed.rollovers == 1)
        assert made.feed.lines[0] is not first and made.feed.lines[0].connected and made.states() == [LIVE, STALE]
        venue.stub.links[1].send(TEXT, book("ETHUSDT", 5))
        made.until(made.live)


def test_the_old_line_goes_when_the_venue_counts_elsewhere_and_doubt_is_settled(monkeypatch):
    """A successor whose numbers begin below, and never catch up: not to be believed for ever."""
    monkeypatch.setattr(line, "SETTLE_NS", 20 * MILLISECOND)
    monkeypatch.setattr(line, "PATIENCE_NS", 100 * MILLISECOND)
    monkeypatch.setattr(ingest, "DOUBT_NS", 100 * MILLISECOND)
    with served(["BTCUSDT"]) as (made, venue):
        made.until(made.live)
        venue.update = 50
        made.feed.lines[0].replace("a test")
        made.until(lambda: made.feed.rollovers == 1)
        assert made.live() and made.pipeline.publisher.entries[0].sequence == 100
        made.until(lambda: made.pipeline.publisher.entries[0].sequence == 50)
        link = made.feed.recovery.link(made.feed.instruments[0])
        assert dict(link.reasons) == {"gap": 1}


def test_a_notice_to_the_successor_is_remembered(monkeypatch):
    monkeypatch.setattr(line, "SETTLE_NS", 50 * MILLISECOND)
    with served() as (made, venue):
        made.until(made.live)
        first = made.feed.lines[0]
        first.replace("a test")
        made.until(lambda: first.successor.connected)
        first.successor.on_notice(Notice(SHUTDOWN, None, "soon"))
        made.until(lambda: made.feed.rollovers == 2)
        assert made.live() and len(venue.stub.links) == 3
        made.until(lambda: venue.stub.links[0].frames[-1][1] == CLOSE)


def test_errors_without_a_request_are_told_and_change_nothing():
    with served() as (made, venue):
        made.until(made.live)
        connection = made.feed.lines[0]
        for request in (None, "nobody's", ["a", "list"], {"an": "object"}):
            connection.on_notice(Notice(ERROR, request, "too many requests"))
        assert made.feed.venue_errors == 4 and made.live() and made.feed.last_error == "too many requests"


def test_connects_to_a_host_are_spaced_over_venues_and_processes():
    hosts = Hosts(sharers=2)
    assert [hosts.acquire_at(host, 1_000, 50) for host in ("a", "a", "b", "a")] == [1_000, 1_100, 1_000, 1_200]
    assert hosts.acquire_at("a", 5_000, 50) == 5_000


def test_everything_is_closed_in_the_middle_of_a_rollover():
    with served() as (made, venue):
        made.until(made.live)
        made.feed.lines[0].replace("a test")
        made.until(lambda: len(venue.stub.links) == 2)
        assert made.states() != [SYNCING, SYNCING]
