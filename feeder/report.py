"""What `run` and `replay` tell about instruments, as JSON-ready dicts with decimal text."""

import json
import sys

from feeder.errors import HostError
from feeder.fixed import to_text
from feeder.message import STATE_NAMES

REPORTED_LEVELS = 20


def level_texts(flat, price_decimals, quantity_decimals):
    """Return [[price text, quantity text], ...] of flat scaled ints."""
    return [[to_text(price, price_decimals), to_text(quantity, quantity_decimals)]
            for price, quantity in zip(flat[::2], flat[1::2])]


def instrument_rows(publisher, recoveries):
    """Return one dict an instrument; `recoveries` is {venue name: Recovery}."""
    return [{**entry_row(entry), **link_row(recoveries[entry.instrument.venue].link(entry.instrument))}
            for entry in publisher.entries]


def entry_row(entry):
    """What the publisher knows of an instrument."""
    instrument = entry.instrument
    bids, asks = entry.book.top(REPORTED_LEVELS)
    decimals = instrument.price_decimals, instrument.quantity_decimals
    return {"venue": instrument.venue, "symbol": instrument.symbol, "name": instrument.name,
            "state": STATE_NAMES[entry.state], "reason": entry.reason, "epoch": entry.epoch,
            "events": entry.events, "trades": entry.trades, "bbos": entry.bbos, "crossed": entry.crossed,
            "last_sequence": entry.sequence,
            "levels": [len(entry.book.bids), len(entry.book.asks)],
            "bids": level_texts(bids, *decimals), "asks": level_texts(asks, *decimals)}


def link_row(link):
    """What recovery knows of it."""
    return {"checksums_verified": link.instrument.verified, "gaps": link.gaps, "resyncs": link.resyncs,
            "resync_reasons": dict(link.reasons), "old": link.old, "late_snapshots": link.late_snapshots,
            "buffer_overflows": link.overflows}


def decoder_rows(venues):
    """Return {venue name: how its messages were read}; `venues` are Venue objects."""
    return {venue.name: {"likely": venue.likely, "unlikely": venue.unlikely, "kinds": dict(venue.kinds),
                         "not_market_trades": venue.not_market, "checksums_failed": venue.checksums_failed}
            for venue in venues}


def check_writable(path):
    """Find out before a long run, not after it, that its report could not be written."""
    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise HostError(f"report {path}: {error.strerror}") from None


def write(report, path):
    """Write a report as one JSON object to a file, or to standard output for "-"."""
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise HostError(f"report {path}: {error.strerror}") from None
