"""The venues that have a twin: one line each."""

from . import binance, bitfinex, bithumb, bybit, coinbase, coinbase_exchange, deribit, kraken, okx, upbit

DIALECTS = {dialect.name: dialect for dialect in (
    binance.Spot, binance.Usdm,
    bybit.Spot, bybit.Linear,
    okx.Okx,
    kraken.Kraken,
    deribit.Deribit,
    coinbase.Coinbase,
    coinbase_exchange.Exchange,
    upbit.Upbit,
    bithumb.Bithumb,
    bitfinex.Bitfinex,
)}
