"""The twin's OKX over real sockets, read by a bare client written from the fact sheet alone."""

import json

import pytest

from feeder.twin.faults import parse
from twin_bench import Book, Follower, bench, keys

OKX = "okx"
SPOT, SWAP = "BTC-USDT", "ETH-USDT-SWAP"
PUBLIC, BUSINESS = "/ws/v5/public", "/ws/v5/business"


def arg(channel, symbol):
    return {"channel": channel, "instId": symbol}


class Reader(Follower):
    """Fact sheet, 5: prevSeqId must be the seqId held; then unsubscribe, wait for the acknowledgement, subscribe."""

    target = PUBLIC

    def __init__(self, it, symbols):
        super().__init__(it, OKX, {symbol: Book(symbol, 400) for symbol in symbols})

    def subscribe(self):
        self.client.send(op="subscribe", args=[arg("books", symbol) for symbol in self.books])

    def take(self, message):
        if "event" in message:
            self.others.append(message)
            if message["event"] == "unsubscribe":
                self.client.send(op="subscribe", args=[message["arg"]])
            return
        book, row = self.books[message["arg"]["instId"]], message["data"][0]
        assert message["arg"]["channel"] == "books" and row["checksum"] == 0 and isinstance(row["ts"], str)
        for level in row["asks"] + row["bids"]:
            assert len(level) == 4 and level[2] == "0"
        sides = [[level[:2] for level in row[side]] for side in ("bids", "asks")]
        if message["action"] == "snapshot":
            assert row["prevSeqId"] == -1
            return book.load(*sides, row["seqId"])
        if book.sides is None:
            return
        if row.get("prevSeqId") != book.last:
            book.gap()
            return self.client.send(op="unsubscribe", args=[message["arg"]])
        book.counts["resets"] += row["seqId"] < book.last
        book.counts["idle" if row["seqId"] == book.last else "updates"] += 1
        if row["seqId"] == book.last:
            assert sides == [[], []]
        book.last = row["seqId"]
        book.set(0, sides[0])
        book.set(1, sides[1])

    def is_true(self, book):
        (_, sequence, *_), = self.it.twin.venues[OKX].books(book.symbol)
        return super().is_true(book) and sequence == book.last


def test_books_end_equal_to_the_true_ones_of_400_levels():
    with bench({OKX: [SPOT, SWAP, "XRP-USDT"]}, rate=4_000, levels=600) as it:
        reader = Reader(it, [SPOT, SWAP])
        reader.more("updates", 60)
        reader.settle()
        assert not reader.count("gaps") and reader.count("snapshots") == 2
        assert all(len(side) == 400 for book in reader.books.values() for side in book.sides)
        late = Reader(it, [SPOT, SWAP])
        late.settle()
        assert not late.count("gaps")


@pytest.mark.parametrize("kind, gaps", [("gap", 1), ("reorder", 1), ("sequence", 1), ("no_sequence", 1),
                                        ("duplicate", 1), ("snapshot", 0), ("reset", 0)])
def test_faults_of_the_chain_heal(kind, gaps):
    with bench({OKX: [SPOT, SWAP]}, faults=[parse(f"{kind}@0.1:{SPOT}")]) as it:
        reader = Reader(it, [SPOT, SWAP])
        it.until(lambda: reader.is_live() and it.twin.faults_done)
        reader.settle()
        assert bool(reader.count("gaps")) == bool(gaps) and not reader.books[SWAP].counts["gaps"]
        assert reader.count("resets") == (kind == "reset") and reader.connects == 1


def test_silence_is_kept_alive_by_empty_updates_and_by_pings():
    with bench({OKX: [SPOT]}, time_scale=300) as it:                           # 30 s are 0.1 s, 60 s are 0.2 s
        quiet, reader, pinging = it.client(OKX, PUBLIC), Reader(it, [SPOT]), it.client(OKX, PUBLIC)
        reader.more("updates", 1)
        it.twin.pause()

        def ping():
            for client in (pinging, reader.client):
                if not client.is_closed:
                    client.say("ping")
            it.loop.call_after(30_000_000, ping)

        ping()
        it.until(lambda: reader.is_live() and reader.count("idle") >= 2)
        assert reader.odd > 3 and reader.connects == 1                         # the odd ones are `pong`
        assert quiet.is_closed and quiet.close_event[0] == 4004 and not pinging.is_closed
        assert (1, b"pong") in pinging.messages
        assert super(Reader, reader).is_true(reader.books[SPOT])


def collect(it, client, count):
    found = []
    it.until(lambda: found.extend(client.texts()) or len(found) >= count)
    return found


def test_each_argument_is_answered_and_errors_are_told():
    with bench({OKX: [SPOT, SWAP]}) as it:
        client = it.client(OKX, PUBLIC)
        client.send(id="1512", op="subscribe", args=[arg("trades", SPOT), arg("books", "NO-SUCH"),
                                                     arg("books50-l2-tbt", SPOT), arg("trades-all", SPOT)])
        client.send(op="unsubscribe", args=[arg("trades", SPOT)])
        client.send(op="login", args=[])
        client.send(op="subscribe", args=[])
        client.say("{")
        found = [message for message in collect(it, client, 8) if "event" in message]
        identities = {message.pop("connId") for message in found}
        assert len(identities) == 1
        assert found[0] == {"id": "1512", "event": "subscribe", "arg": arg("trades", SPOT)}
        assert [message.get("code") for message in found] == [
            None, "60018", "64003", "60018", None, "60012", "60013", "60012"]
        assert "NO-SUCH" in found[1]["msg"] and found[1]["id"] == "1512" and "id" not in found[4]
        assert not it.twin.venues[OKX].channels
        client.send(op="subscribe", args=[arg("books", SPOT)])
        client.send(op="subscribe", args=[arg("books", SPOT)])                 # again: acknowledged, no snapshot
        found = collect(it, client, 30)
        assert "event" in found[0] and found[1]["action"] == "snapshot"        # the acknowledgement comes first
        assert sum(message.get("action") == "snapshot" for message in found) == 1
        assert sum("event" in message for message in found) == 2


def test_the_requests_of_an_hour_are_counted():
    with bench({OKX: [SPOT]}, settings={OKX: {"requests_per_hour": 4}}) as it:
        client = it.client(OKX, PUBLIC)
        client.send(op="subscribe", args=[arg("trades", SPOT), arg("books", SPOT), arg("bbo-tbt", SPOT)])
        client.send(op="unsubscribe", args=[arg("books", SPOT), arg("bbo-tbt", SPOT)])
        events = []
        it.until(lambda: events.extend(message for message in client.texts() if "event" in message)
                 or len(events) == 5)
        assert [event.get("code") for event in events] == [None] * 4 + ["60014"]


def test_three_connections_a_second():
    with bench({OKX: [SPOT]}) as it:
        clients = [it.client(OKX, PUBLIC) for _ in range(4)]
        it.until(lambda: clients[3].is_closed)
        assert "429" in str(clients[3].error) and not any(client.is_closed for client in clients[:3])
        missing = it.client(OKX, "/ws/v5/private")
        it.until(lambda: missing.is_closed)
        assert "404" in str(missing.error)


def test_a_notice_precedes_the_end():
    with bench({OKX: [SPOT]}, time_scale=100) as it:
        reader = Reader(it, [SPOT])
        it.until(reader.is_live)
        it.fault(OKX, "notice")
        first = reader.client
        it.until(lambda: reader.work() or any(event.get("code") == "64008" for event in reader.others))
        assert not first.is_closed
        it.until(lambda: first.is_closed)
        reader.settle()
        assert reader.connects == 2


RECORDED = {
    "books": '{"arg":{"channel":"books","instId":"SOL-USDT"},"action":"update","data":[{"asks":[["120.67","60.475897",'
    '"0","5"]],"bids":[["120.66","0","0","0"]],"ts":"1790394877300","checksum":0,"seqId":32032594315,'
    '"prevSeqId":32032594283}]}',
    "trades": '{"arg":{"channel":"trades","instId":"SOL-USDT-SWAP"},"data":[{"instId":"SOL-USDT-SWAP","tradeId":'
    '"1632918528","px":"120.6","sz":"391.07","side":"sell","ts":"1790394876983","count":"26","source":"0",'
    '"seqId":92286018766}]}',
    "bbo-tbt": '{"arg":{"channel":"bbo-tbt","instId":"LTC-USDC"},"data":[{"asks":[["83.81","11.93175","0","1"]],'
    '"bids":[["83.8","11.93317","0","1"]],"ts":"1765201257149","seqId":378617009}]}',
}


def test_messages_are_written_as_the_quoted_ones():
    with bench({OKX: [SPOT, SWAP]}) as it:
        for channel, recorded in RECORDED.items():
            client = it.client(OKX, PUBLIC)
            client.send(op="subscribe", args=[arg(channel, SWAP)])
            raws = []
            it.until(lambda: raws.extend(raw for _, raw in client.messages if b'"event"' not in raw)
                     or client.messages.clear() or len(raws) > 10)
            assert all(keys(json.loads(raw)) == keys(json.loads(recorded)) for raw in raws[1:])
            assert not any(b" " in raw for raw in raws)
            client.stream.abort()


def test_trades_are_merged_on_public_and_single_on_business():
    with bench({OKX: [SPOT]}) as it:
        merged, single = it.client(OKX, PUBLIC), it.client(OKX, BUSINESS)
        merged.send(op="subscribe", args=[arg("trades", SPOT)])
        single.send(op="subscribe", args=[arg("trades-all", SPOT)])
        rows = {merged: [], single: []}
        it.until(lambda: [found.extend(message["data"][0] for message in client.texts() if "data" in message)
                          for client, found in rows.items()] and all(len(found) > 40 for found in rows.values()))
        last = None
        for row in rows[merged]:
            number, count = int(row["tradeId"]), int(row["count"])
            assert last is None or number - count == last
            last = number
        assert max(int(row["count"]) for row in rows[merged]) > 1 and "count" not in rows[single][0]
        by_number = {int(row["tradeId"]): row for row in rows[single]}
        compared = 0
        for row in rows[merged]:
            number, count = int(row["tradeId"]), int(row["count"])
            fills = [by_number.get(each) for each in range(number - count + 1, number + 1)]
            if all(fills):
                assert {(fill["px"], fill["side"]) for fill in fills} == {(row["px"], row["side"])}
                assert abs(sum(float(fill["sz"]) for fill in fills) - float(row["sz"])) < 1e-6
                compared += 1
        assert compared > 10 and {row["side"] for row in rows[merged]} == {"buy", "sell"}


def test_best_and_five_levels_are_whole():
    with bench({OKX: [SPOT]}) as it:
        client = it.client(OKX, PUBLIC)
        client.send(op="subscribe", args=[arg("bbo-tbt", SPOT), arg("books5", SPOT)])
        last = {}

        def latest():
            for message in client.texts():
                if "data" in message:
                    assert "action" not in message
                    last[message["arg"]["channel"]] = message["data"][0]
            return last

        it.until(lambda: len(latest()) == 2)
        it.twin.pause()
        for _ in range(10):
            it.loop.run_once(5_000_000)
        bids, asks = it.truth(OKX, SPOT, 5)
        for channel, depth in (("bbo-tbt", 1), ("books5", 5)):
            row = latest()[channel]
            assert [float(level[0]) for level in row["bids"]] == [float(price) for price, _ in bids[:depth]]
            assert [float(level[1]) for level in row["asks"]] == [float(size) for _, size in asks[:depth]]


def test_rest():
    with bench({OKX: [SPOT, SWAP, "BTC-USD-SWAP"]}) as it:
        rows = it.get(OKX, "/api/v5/public/instruments?instType=SPOT")[2]["data"]
        assert [(row["instId"], row["tickSz"], row["state"]) for row in rows] == [(SPOT, "0.1", "live")]
        rows = it.get(OKX, "/api/v5/public/instruments?instType=SWAP")[2]["data"]
        assert [(row["instId"], row["ctType"]) for row in rows] == [(SWAP, "linear"), ("BTC-USD-SWAP", "inverse")]
        assert it.get(OKX, "/api/v5/public/instruments?instType=SWAP&instId=X")[2]["code"] == "51001"
        assert it.get(OKX, "/api/v5/public/instruments")[2]["code"] == "51000"
        book = it.get(OKX, f"/api/v5/market/books?instId={SPOT}&sz=7")[2]["data"][0]
        assert len(book["bids"]) == len(book["asks"]) == 7 and book["seqId"] > 0
        assert it.get(OKX, "/api/v5/public/time")[2]["code"] == "0" and it.get(OKX, "/x")[0] == 404
        assert it.get(OKX, "/twin/fault?kind=rest_429")[0] == 200
        status, _, answer = it.get(OKX, "/api/v5/public/time")
        assert (status, answer["code"]) == (429, "50011")
