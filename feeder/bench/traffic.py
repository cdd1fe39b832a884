"""What the benches feed: the BTCUSDT spot recording, or the same kind of traffic made by the twin's market."""

import os

from feeder import capture

RECORDING = os.path.join("binance_spot", "btcusdt_20240808_10min.jsonl.gz")


class Traffic:
    """`snapshot` (bytes), `messages` (all payloads, in their order), and by kind; `source` says where it is from."""

    def __init__(self, source, snapshot, messages):
        self.source = source
        self.snapshot = snapshot
        self.messages = messages
        self.kinds = {"depth": [each for each in messages if b"@depth" in each[:60]],
                      "trade": [each for each in messages if b"@trade" in each[:60]],
                      "bbo": [each for each in messages if b"@bookTicker" in each[:60]]}
        self.kinds["mix"] = messages


def load(limit):
    """The recording from its snapshot on, at most `limit` messages of it; without a recording the twin's."""
    path = os.path.join(os.environ.get("FEEDER_CAPTURES", os.path.join("..", "shared", "data")), RECORDING)
    if not os.path.exists(path):
        return synthetic(limit)
    messages, snapshot = [], None
    for record in capture.read(path):
        if record.kind == "rest":
            snapshot = record.payload
        else:
            messages.append(record.payload)
        if len(messages) >= limit:
            break
    return Traffic(f"{len(messages):,} messages of the recording {RECORDING}", snapshot, messages)


def synthetic(limit):
    """As many messages of one listing of the twin's seeded market, as its server would send them."""
    from feeder.twin.registry import DIALECTS
    from feeder.twin.source import BBO, DEPTH, TRADE, Synthetic
    names = {DEPTH: "btcusdt@depth@100ms", TRADE: "btcusdt@trade", BBO: "btcusdt@bookTicker"}
    market = Synthetic(DIALECTS["binance_spot"](), ["BTCUSDT"], seed=1, rate=1_000)
    now_ms = 1_723_161_255_000
    snapshot = market.depth("BTCUSDT", 5000, now_ms).encode()
    messages = []
    while len(messages) < limit:
        now_ms += 3
        for event in market.market.step(now_ms):
            if event[0] in names:
                text = market.text(event[0], "BTCUSDT", event, now_ms)
                messages.append(f'{{"stream":"{names[event[0]]}","data":{text}}}'.encode())
    return Traffic(f"{len(messages):,} messages of the venue twin's market, seed 1 (no recording found)", snapshot,
                   messages)
