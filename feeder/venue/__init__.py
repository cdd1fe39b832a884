"""The registry of venues: a line each. Nothing outside this folder names one."""

from urllib.parse import urlsplit

from feeder.errors import CaptureError
from feeder.venue.binance import BinanceCoinm, BinanceSpot, BinanceUsdm
from feeder.venue.bitfinex import Bitfinex
from feeder.venue.bithumb import Bithumb
from feeder.venue.bybit import BybitLinear, BybitSpot
from feeder.venue.coinbase import CoinbaseAdvanced, CoinbaseExchange
from feeder.venue.deribit import Deribit
from feeder.venue.kraken import Kraken, KrakenV1
from feeder.venue.okx import Okx
from feeder.venue.upbit import Upbit

VENUES = {venue.name: venue for venue in (
    BinanceSpot, BinanceUsdm, BinanceCoinm,
    BybitSpot, BybitLinear,
    Okx,
    Deribit,
    CoinbaseExchange, CoinbaseAdvanced,
    Kraken, KrakenV1,
    Bitfinex,
    Upbit, Bithumb,
)}

# What `run` without a configuration feeds from, where nothing is said: both procedures of joining.
EMBEDDED = ("binance_spot", "binance_usdm")

# Dialects we can name but not read yet, by a part of their host.
UNSUPPORTED = {"bybit": "bybit", "okx": "okx", "okex": "okx", "advanced-trade-ws.coinbase": "coinbase",
               "coinbase": "coinbase_exchange", "upbit": "upbit", "bithumb": "bithumb_legacy", "deribit": "deribit",
               "futures.kraken": "kraken_futures", "kraken": "kraken", "bitfinex": "bitfinex", "bitstamp": "bitstamp",
               "gateio": "gate", "gate.io": "gate", "huobi": "htx", "hbdm": "htx", "htx": "htx", "kucoin": "kucoin"}


def recognise(url):
    """Return the venue class whose connection `url` is. Raises CaptureError, naming what it is if that is known."""
    try:
        for venue in VENUES.values():
            if venue.recognises(url):
                return venue
        host = urlsplit(url).hostname or ""
    except ValueError:                # brackets that are no IPv6 address
        host = ""
    known = next((name for part, name in UNSUPPORTED.items() if part in host), None)
    what = f"{known} ({url[:100]})" if known else f"the connection {url[:100]!r}"
    raise CaptureError(f"{what} is not a supported dialect; supported are {', '.join(VENUES)}")
