"""What is traded where, and how its numbers are scaled.

Two scales, both powers of ten, per instrument and apart for price and quantity:

- *decimals* scale every int inside the process: 61837.64 with price_decimals 2 is 6183764. They are what the
  venue prints, as far as it was seen, so text becomes an int by dropping its point; they may grow (`define`).
- *exponents* scale what leaves in packets: -8 for nearly all, announced in the definition. Inside ints
  become outside ints by one multiplication: `price * price_factor`.
"""

from zlib import crc32

from feeder.fixed import INT64_MAX

WIRE_EXPONENT = -8           # DESIGN §3: the likely case; another one only where a value does not fit
SYMBOL_BYTES = 32            # field widths of the instrument definition, packet.py
VENUE_BYTES = 24


class Instrument:
    """One tradable thing at one venue. `instrument_id` is dense from 0, so stages keep state in lists."""

    __slots__ = ("instrument_id", "venue", "symbol", "name", "price_decimals", "quantity_decimals",
                 "price_exponent", "quantity_exponent", "price_factor", "quantity_factor", "is_scaled",
                 "tick", "lot", "contract", "depth", "may_cross", "verified", "shared")

    def __init__(self, instrument_id, venue, symbol, name=None, price_decimals=0, quantity_decimals=0, depth=20):
        self.instrument_id = instrument_id
        self.venue = venue
        self.symbol = symbol                 # the venue's own text
        self.name = name or symbol           # the common one, BTC/USDT
        self.price_decimals = price_decimals
        self.quantity_decimals = quantity_decimals
        self.price_exponent = self.quantity_exponent = WIRE_EXPONENT
        self.tick = self.lot = None          # decimal text of the venue's filters, where known
        self.contract = "1"                  # coins (or what the venue counts in) to a quantity of 1, as text
        self.may_cross = False               # no continuous trading now (auction): bids above asks are no fault
        self.shared = 0                      # packet.SHARED_*: which venue sequences are the same on every connection
        self.verified = 0                    # checksums of the venue that agreed with our book
        self.depth = depth                   # levels a side that are published; 0 is all
        self.rescale()

    def rescale(self):
        """Derive exponents and factors anew after a change of the decimals."""
        self.price_exponent = min(self.price_exponent, -self.price_decimals)
        self.quantity_exponent = min(self.quantity_exponent, -self.quantity_decimals)
        self.price_factor = 10 ** (-self.price_exponent - self.price_decimals)
        self.quantity_factor = 10 ** (-self.quantity_exponent - self.quantity_decimals)
        self.is_scaled = self.price_factor != 1 or self.quantity_factor != 1

    def fits(self, levels, price_scale, quantity_scale):
        """Return True if flat levels from before the decimals grew by these scales still fit 64 bits on the wire."""
        return (max(levels[::2], default=0) * price_scale * self.price_factor <= INT64_MAX
                and max(levels[1::2], default=0) * quantity_scale * self.quantity_factor <= INT64_MAX)

    def __repr__(self):
        return f"<{self.venue}:{self.symbol} #{self.instrument_id}>"


def channel_index(venue, symbol, channel_count):
    """Return which of the channels carries an instrument: the same in every run that has as many, and at every feeder."""
    return crc32(f"{venue}:{symbol}".encode()) % channel_count
