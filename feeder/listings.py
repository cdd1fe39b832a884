"""Instrument lists on disk: tick, lot and contract size by symbol, with the date they are of.

    {"venue": "bybit_linear", "date": "2026-11-23T08:19:00Z", "source": URL or file,
     "instruments": {"BTCUSDT": {"tick": "0.10", "lot": "0.001", "contract": "1"}, ...}}

A feed writes what its venue listed of its symbols (`instruments_file`), and reads it at the next start, before the venue can
be asked or where it never can. tools/make_instruments.py writes such a file from a saved answer.
"""

import json
import os

from feeder.errors import ConfigError, FeederError
from feeder.fixed import split
from feeder.log import timestamp
from feeder.venue.contract import Listing

MAX_FILE_BYTES = 32 << 20


def read(path, venue):
    """Return (date, {symbol: Listing}); ("", {}) where there is no file. Raises ConfigError where it is no such list."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return "", {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"longer than {MAX_FILE_BYTES} bytes")
        found = json.loads(text)
        if found["venue"] != venue:
            raise ValueError(f"it is of {found['venue']!r:.40}, expected {venue}")
        listings = {symbol: Listing(entry["tick"], entry["lot"], entry["contract"])
                    for symbol, entry in found["instruments"].items()}
        for listing in listings.values():
            for number in listing:
                if number is not None and split(number)[0] <= 0:
                    raise ValueError(f"{number!r:.40} is no size")
        return str(found["date"])[:40], listings
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FeederError) as error:
        raise ConfigError(f"{path}: not an instrument list: {type(error).__name__}: {error}") from None


def write(path, venue, listings, source, wall_ns):
    """Add listings to the file, or make it; other symbols in it stay. Raises ConfigError."""
    try:
        known = read(path, venue)[1]
    except ConfigError:
        known = {}                        # what is unreadable is written anew
    found = {"venue": venue, "date": timestamp(wall_ns), "source": source, "instruments": {
        symbol: listing._asdict() for symbol, listing in sorted({**known, **listings}.items())}}
    beside = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1, ensure_ascii=False)
            file.write("\n")
        os.replace(beside, path)          # a reader sees the old one or the new one
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
