"""The twin's Coinbase Exchange over real sockets, read by a bare client written from the fact sheet alone."""

import json

from twin_bench import Book, Follower, bench, keys

EXCHANGE = "coinbase_exchange"
BTC, ETH = "BTC-USD", "ETH-USD"


class Reader(Follower):
    """Fact sheet, A5: a snapshot replaces, changes apply; a loss is a disconnect."""

    def __init__(self, it, products):
        super().__init__(it, EXCHANGE, {product: Book(product) for product in products})

    def subscribe(self):
        self.client.send(type="subscribe", product_ids=list(self.books), channels=["level2_batch"])

    def take(self, message):
        if message["type"] == "snapshot":
            self.books[message["product_id"]].load(message["bids"], message["asks"])
        elif message["type"] == "l2update":
            book = self.books[message["product_id"]]
            assert book.sides is not None and {side for side, _, _ in message["changes"]} <= {"buy", "sell"}
            book.counts["updates"] += 1
            for number, name in enumerate(("buy", "sell")):
                book.set(number, [(price, size) for side, price, size in message["changes"] if side == name])
        else:
            self.others.append(message)


def test_books_of_all_levels_end_equal_to_the_true_ones():
    with bench({EXCHANGE: [BTC, ETH]}, rate=3_000) as it:
        reader = Reader(it, [BTC, ETH])
        reader.more("updates", 60)
        reader.settle()
        late = Reader(it, [BTC, ETH])
        late.settle()
        assert reader.count("snapshots") == late.count("snapshots") == 2
        (answer,), = (message["channels"] for message in reader.others)
        assert answer == {"name": "level2_50", "product_ids": [BTC, ETH]}


def test_a_loss_is_a_disconnect_and_a_duplicate_harmless():
    with bench({EXCHANGE: [BTC, ETH]}) as it:
        reader = Reader(it, [BTC, ETH])
        it.until(reader.is_live)
        for kind, connects in (("duplicate", 1), ("snapshot", 1), ("gap", 2), ("disconnect", 3), ("garbage", 3),
                               ("mute", 4)):
            it.fault(EXCHANGE, kind, seconds=0.05)
            it.until(lambda: reader.is_live() and reader.connects == connects)
            reader.settle()
        assert it.get(EXCHANGE, "/twin/fault?kind=reorder")[0] == 400          # nobody could tell


def collect(it, client, count):
    found = []
    it.until(lambda: found.extend(client.texts()) or len(found) >= count)
    return found


def test_requests_and_their_answers():
    with bench({EXCHANGE: [BTC, ETH]}, settings={EXCHANGE: {"batch_name": "level2_batch"}}) as it:
        client = it.client(EXCHANGE, "/")
        it.twin.pause()
        ticker = {"name": "ticker", "product_ids": [ETH]}
        client.send(type="subscribe", product_ids=[BTC], channels=["heartbeat", ticker, "level2_batch"])
        client.send(type="subscribe", product_ids=[BTC], channels=["level2"])
        client.send(type="subscribe", product_ids=["NO-PE"], channels=["matches"])
        client.send(type="unsubscribe", product_ids=[BTC], channels=["level2_batch", "heartbeat"])
        client.send(type="sing")
        client.say("[")
        found = [message for message in collect(it, client, 7) if message["type"] not in ("snapshot", "heartbeat")]
        assert found[0]["channels"] == [{"name": "heartbeat", "product_ids": [BTC]}, ticker,
                                        {"name": "level2_batch", "product_ids": [BTC]}]
        assert [(message["message"], message.get("reason")) for message in found if message["type"] == "error"] == [
            ("Failed to subscribe", "level2 requires authentication"),
            ("Failed to subscribe", "NO-PE is not a valid product"),
            ("Type has to be either subscribe or unsubscribe", None), ("Malformed JSON", None)]
        assert found[3]["channels"] == [ticker]


def test_who_does_not_subscribe_is_cut_off_and_heartbeats_come():
    with bench({EXCHANGE: [BTC]}, time_scale=50) as it:                        # 5 s are 0.1 s, 1 s is 20 ms
        late, kept = it.client(EXCHANGE, "/"), it.client(EXCHANGE, "/")
        kept.send(type="subscribe", product_ids=[BTC], channels=["heartbeat"])
        it.until(lambda: late.is_closed)
        beats = []
        it.until(lambda: beats.extend(m for m in kept.texts() if m["type"] == "heartbeat") or len(beats) > 10)
        assert set(beats[0]) == {"type", "sequence", "last_trade_id", "product_id", "time"}
        it.twin.pause()
        beats.clear()
        it.until(lambda: beats.extend(m for m in kept.texts() if m["type"] == "heartbeat") or len(beats) > 2)
        assert beats[-1]["last_trade_id"] == it.twin.venues[EXCHANGE].source.listings[BTC].trade_id


def test_matches_number_on_with_the_makers_side_after_the_last_one_again():
    recorded = ('{"type":"match","trade_id":280232,"maker_order_id":"2a0da34e-61f7-4c36-88e5-c9dd15927b16",'
                '"taker_order_id":"3c82abaa-c01e-4608-be59-6a1e69742891","side":"sell","size":"985",'
                '"price":"0.00001305","product_id":"SKL-BTC","sequence":177100030,'
                '"time":"2021-04-17T16:43:37.089723Z"}')
    with bench({EXCHANGE: [BTC]}) as it:
        makers = {}
        publish = it.twin.venues[EXCHANGE].publish
        it.twin.venues[EXCHANGE].publish = lambda symbol, kind, event: (
            makers.update({event[2]: event[5]}) if kind == "trade" else None, publish(symbol, kind, event))
        client = it.client(EXCHANGE, "/")
        client.send(type="subscribe", product_ids=[BTC], channels=["matches", "ticker"])
        found = collect(it, client, 100)
        assert [message["type"] for message in found[:2]] == ["subscriptions", "last_match"]
        rows = [message for message in found if message["type"] == "match"]
        numbers = [row["trade_id"] for row in rows]
        assert numbers == list(range(found[1]["trade_id"] + 1, found[1]["trade_id"] + 1 + len(numbers)))
        assert all(keys(row) == keys(json.loads(recorded)) for row in rows)
        assert all((row["side"] == "buy") == makers[row["trade_id"]] for row in rows if row["trade_id"] in makers)
        assert {row["side"] for row in rows} == {"buy", "sell"}
        tickers = [message for message in found if message["type"] == "ticker"]
        assert tickers and float(tickers[-1]["best_bid"]) < float(tickers[-1]["best_ask"])


def test_prices_are_spelled_with_and_without_zeros():
    with bench({EXCHANGE: [BTC]}) as it:
        client = it.client(EXCHANGE, "/")
        client.send(type="subscribe", product_ids=[BTC], channels=["level2_batch"])
        found = [message for message in collect(it, client, 20) if message["type"] == "l2update"]
        decimals = {len(price.partition(".")[2]) for message in found for _, price, _ in message["changes"]}
        assert decimals == {1, 5}
        recorded = '{"type":"l2update","product_id":"SKL-BTC","changes":[],"time":"2021-04-17T16:43:37.075687Z"}'
        assert [key for key, _ in keys(found[0])] == [key for key, _ in keys(json.loads(recorded))]


def test_rest():
    with bench({EXCHANGE: [BTC, ETH]}) as it:
        rows = it.get(EXCHANGE, "/products")[2]
        assert [(row["id"], row["quote_increment"], row["base_increment"]) for row in rows] == [
            (BTC, "0.1", "0.000001"), (ETH, "0.01", "0.00001")]
        assert it.get(EXCHANGE, f"/products/{BTC}")[2]["status"] == "online"
        book = it.get(EXCHANGE, f"/products/{BTC}/book?level=2")[2]
        assert len(book["bids"]) > 200 and book["auction_mode"] is False
        assert len(it.get(EXCHANGE, f"/products/{BTC}/book")[2]["asks"]) == 1
        assert it.get(EXCHANGE, "/products/NO-PE")[0] == 404 and it.get(EXCHANGE, "/time")[0] == 200
        it.get(EXCHANGE, "/twin/fault?kind=rest_429")
        assert it.get(EXCHANGE, "/time")[0] == 429
