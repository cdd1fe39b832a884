"""The trailer of a signed packet: who holds the key can tell whether a datagram comes from who holds it, too.

HMAC-SHA-256 over the datagram without its trailer, cut to 16 bytes (RFC 2104 §5), and the flag RETRANSMITTED taken as 0,
so that a store sends again what it heard, as it is. Cost: 2 us for 1,472 bytes.

It does not hide anything, and it does not tell a copy from the original: what was recorded may be sent again. Within a
session such a copy is a duplicate; receivers with a key go back to no older session (docs/protocol.md).
"""

import hmac

from feeder.errors import ConfigError

RETRANSMITTED, FLAGS_AT = 8, 5           # as in packet.py
TRAILER_BYTES = 16
MIN_KEY_BYTES, MAX_KEY_BYTES = 16, 1024


class Seal:
    """Args: key, 16 to 1,024 bytes, from a file that only its users can read."""

    def __init__(self, key):
        if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise ConfigError(f"key of {len(key)} bytes, expected {MIN_KEY_BYTES} to {MAX_KEY_BYTES}")
        self.key = key

    def sign(self, data):
        """Return the trailer of a datagram (any buffer) that has none yet."""
        if data[FLAGS_AT] & RETRANSMITTED:
            data = bytearray(data)
            data[FLAGS_AT] &= ~RETRANSMITTED
        return hmac.digest(self.key, data, "sha256")[:TRAILER_BYTES]

    def verify(self, datagram):
        """Return True if the last 16 bytes of a datagram are its trailer."""
        stop = len(datagram) - TRAILER_BYTES
        return stop > FLAGS_AT and hmac.compare_digest(self.sign(datagram[:stop]), datagram[stop:])
