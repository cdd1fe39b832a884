"""Bithumb, the interface of 2024: Upbit's protocol (upbit.py), but for what is said here.

Source: the exchange's fact sheet of 2026-09 (apidocs.bithumb.com), section numbers in the comments; frames of 2026.

| message                            | role      | action                                                         |
| orderbook, REALTIME or SNAPSHOT    | image     | as Upbit's; 15 levels, times in µs, sizes of 4 decimals        |
| trade, REALTIME; SNAPSHOT          | trade; an old one | as Upbit's; trade_timestamp, for trade_time is Korea's  |
| {"status":"UP"}, {"error":{..}}    | alive, error | as Upbit's                                                  |
| ticker                             | not ours  | counted                                                        |

A SNAPSHOT may come behind REALTIME images that are newer; then it is dropped. The legacy socket (pubwss) tells changes
without a number and never a whole book, so nobody can know one from it: it is not read.
"""

from urllib.parse import urlsplit

from feeder.venue.contract import Request
from feeder.venue.upbit import Upbit


class Bithumb(Upbit):
    name = "bithumb"
    hosts = ("ws-api.bithumb.com",)
    rest_hosts = ("api.bithumb.com",)
    realtime = "isOnlyRealtime"                   # §2: the spelling with underscores is ignored
    default_levels = 15
    lot = None                                    # §8: neither ticks nor lots are told
    facts = Upbit.facts._replace(
        title="Bithumb", defaults={"snapshot_limit": 15, "streams_per_connection": 200}, snapshot_limits=range(1, 16),
        connect_every_ms=150, notes="10 connects/s an address, beyond it none for 10 min; a book every 100 ms",
        shared=())                                # several trades may share an id

    @classmethod
    def recognises(cls, url):
        parts = urlsplit(url)
        if parts.scheme in ("ws", "wss"):
            return parts.hostname in cls.hosts and parts.path == cls.path
        return parts.hostname in cls.rest_hosts and parts.path.startswith("/v1/")

    def instruments_request(self, symbols):
        return Request("/v1/market/all", 1)

    def more_instruments(self, request, body):
        return None
