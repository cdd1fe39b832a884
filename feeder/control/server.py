"""Who keeps packets and sends them again: a request in, what to answer to the same address out.

In:   datagrams of anybody who can reach the port.   Out: packets, CHALLENGE, UNAVAILABLE, BUSY; mostly nothing.

    request ─▶ ours? ─▶ of a network that may ask? ─▶ signed? ─▶ token of its address? ─▶ granted? ─▶ kept? ─▶ packets
                drop         drop                      drop       CHALLENGE               BUSY        UNAVAILABLE

The address of a datagram is easily forged, so whoever asks first has to prove that it hears us: the token, which only a
CHALLENGE to its address tells. Until then it gets one datagram for one, of the same size or a shorter one: to forge
requests is of no use against a third party (amplification 1). The token is an HMAC of address, port and time by a
secret of this run, so that strangers take no memory: SYN cookies' idea (D. J. Bernstein, 1996).

An asker is an address and port. Each may have so many packets a second and all together so many, whatever they do.
"""

import hmac
import ipaddress
from functools import lru_cache

from feeder.clock import MICROSECOND, SECOND
from feeder.errors import ConfigError, PacketError

from .bucket import Bucket
from .datagram import BUSY, CHALLENGE, MAX_PACKETS, REQUEST, TOKEN_BYTES, UNAVAILABLE, Control, decode, encode

SLICE_NS = 30 * SECOND                # a token is good in the slice that it was made in and in the next one
PACKETS_PER_SECOND = 20_000           # to all
ASKER_PACKETS_PER_SECOND = 10_000     # to one
CHALLENGES_PER_SECOND = 5_000
BURST_SHARE = 20                      # a burst is a 20th of a second's, and an answer's at least
MAX_ASKERS = 1024
MAX_WAIT_US = 0xFFFFFFFF


class Server:
    """Args: stores {channel: Store}; networks that may ask, as parse_networks() gives them; secret, 32 random bytes.

    With a seal it answers only what is signed, and signs. `counts` says what became of every datagram.
    """

    def __init__(self, stores, networks, secret, seal=None, packets_per_second=PACKETS_PER_SECOND,
                 asker_packets_per_second=ASKER_PACKETS_PER_SECOND):
        self.stores = stores
        self.networks = networks
        self.secret = secret
        self.seal = seal
        self.asker_rate = min(packets_per_second, asker_packets_per_second)
        self.bucket = bucket(packets_per_second)
        self.challenges = Bucket(CHALLENGES_PER_SECOND, CHALLENGES_PER_SECOND // BURST_SHARE)
        self.askers = {}              # (host, port): Bucket; of proven addresses only, the longest silent one first
        self.allows = lru_cache(MAX_ASKERS)(self.allows)
        self.counts = dict.fromkeys((
            "requests", "packets", "packet_bytes", "unavailable", "busy", "challenges",
            "malformed", "other_networks", "not_requests", "challenges_refused"), 0)

    def receive(self, data, address, now_ns):
        """Return what to send to `address`, a socket's; packets are views, good until their store's next add()."""
        counts = self.counts
        if not self.allows(address[0]):
            counts["other_networks"] += 1
            return []
        try:
            request = decode(data, self.seal)
        except PacketError:
            counts["malformed"] += 1
            return []
        if request.kind != REQUEST:                   # an answer to one that names us as its sender, most likely
            counts["not_requests"] += 1
            return []
        if not self.is_proven(address, request.token, now_ns):
            if self.challenges.wait_ns(1, now_ns):
                counts["challenges_refused"] += 1
                return []
            self.challenges.take(1, now_ns)
            counts["challenges"] += 1
            return [self.reply(request, kind=CHALLENGE, token=self.token(address, now_ns // SLICE_NS))]
        counts["requests"] += 1
        return self.answer(request, address[:2], now_ns)

    def answer(self, request, asker, now_ns):
        _, channel, session, first, count, _, _ = request
        counts = self.counts
        store = self.stores.get(channel)
        store = store.of(session) if store is not None else None
        packets, missing = store.find(first, count) if store is not None else ([], (first, first + count - 1))
        price = len(packets) or 1
        own = self.askers.pop(asker, None)
        if own is None:
            own, wait_ns = self.new_asker(now_ns)
        else:
            wait_ns = own.wait_ns(price, now_ns)
        if own is not None:
            self.askers[asker] = own
        wait_ns = max(wait_ns, self.bucket.wait_ns(price, now_ns))
        if wait_ns:
            counts["busy"] += 1
            return [self.reply(request, kind=BUSY, wait_us=min(-(-wait_ns // MICROSECOND), MAX_WAIT_US))]
        own.take(price, now_ns)
        self.bucket.take(price, now_ns)
        counts["packets"] += len(packets)
        counts["packet_bytes"] += sum(map(len, packets))
        if missing is not None:
            counts["unavailable"] += 1
            packets.append(self.reply(request, kind=UNAVAILABLE, first=missing[0], count=missing[1] - missing[0] + 1))
        return packets

    def new_asker(self, now_ns):
        """Return (Bucket, 0), or (None, how long to wait) where each of too many askers still counts.

        Who is forgotten has a full bucket: to come from many ports, or back after a while, gains nothing.
        """
        if len(self.askers) >= MAX_ASKERS:
            oldest = next(iter(self.askers))
            if not self.askers[oldest].is_full(now_ns):
                return None, self.askers[oldest].full_ns - now_ns
            del self.askers[oldest]
        return bucket(self.asker_rate), 0

    def reply(self, request, **more):
        """What a request is answered repeats what it was about; nothing of it is longer than the request."""
        return encode(Control(**{**request._asdict(), "wait_us": 0, "token": bytes(TOKEN_BYTES), **more}), self.seal)

    def token(self, address, time_slice):
        text = f"{address[0]} {address[1]} {time_slice}"
        return hmac.digest(self.secret, text.encode(), "sha256")[:TOKEN_BYTES]

    def is_proven(self, address, token, now_ns):
        time_slice = now_ns // SLICE_NS
        return any(hmac.compare_digest(token, self.token(address, each)) for each in (time_slice, time_slice - 1))

    def allows(self, host):
        """Whether a host is in one of the networks; IPv4 that an IPv6 socket hears is IPv4 (RFC 4291 §2.5.5.2)."""
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address.version == network.version and address in network for network in self.networks)


def bucket(packets_per_second):
    return Bucket(packets_per_second, max(MAX_PACKETS, packets_per_second // BURST_SHARE))


def parse_networks(texts):
    """Return the networks of texts such as "10.1.0.0/16" or "::1". Raises ConfigError."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(f"network {text!r}: {error}; expected such as 10.1.0.0/16, 127.0.0.1 or ::1") from None
    return networks
