"""The normalized messages, as calls: every stage hands the next one plain ints by calling its *sink*.

A call with positional ints costs less than building an object and unpacking it again, and a ring writer,
a book keeper and a test's recorder can all stand behind the same six names:

    define(instrument, price_scale, quantity_scale)
        The instrument is new, or its decimals grew: ints kept so far are multiplied by the scales (1: no change).
        A scale of 0: decimals shrank, what was kept is void; a stale() came before.
    depth(instrument, first, last, previous, event_ns, recv_ns, bids, asks)
        decoder -> recovery. Venue update ids as the venue gave them; `previous` is None where it gives none.
    snapshot(instrument, sequence, event_ns, recv_ns, bids, asks)
        Replaces the book; the instrument is LIVE after it.
    increment(instrument, sequence, event_ns, recv_ns, bids, asks)
        recovery -> book. Gapless: follows directly on the snapshot or the increment before it.
    trade(instrument, sequence, event_ns, recv_ns, trade_id, price, quantity, side)
    bbo(instrument, sequence, event_ns, recv_ns, bid_price, bid_quantity, ask_price, ask_quantity)
    stale(instrument, reason, recv_ns)
        The book is not to be trusted until the next snapshot. `reason` is one of REASONS.

`bids` and `asks` are flat lists [price, quantity, price, quantity, ...] of scaled ints (instrument decimals),
quantity 0 removes; order as the venue sent it. Times are ns since the epoch, 0 where the venue gives none.
`side` is the aggressor's.
"""

SYNCING, LIVE, STALE = 1, 2, 3
STATE_NAMES = {SYNCING: "syncing", LIVE: "live", STALE: "stale"}

BUY, SELL = 1, 2
SIDE_NAMES = {BUY: "buy", SELL: "sell"}

# Why a book is not live. The text goes into reports, the index into status messages (docs/protocol.md).
REASONS = ("none", "start", "gap", "disconnect", "crossed", "snapshot_stale", "buffer_overflow",
           "precision", "range", "bad_message", "venue", "shutdown", "ring_full", "too_many_levels",
           "checksum", "silent")
REASON_CODES = {name: code for code, name in enumerate(REASONS)}
