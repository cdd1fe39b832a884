"""Control datagrams: 48 bytes, and a trailer of 16 where a key is used (seal.py). docs/protocol.md, Retransmission."""

from collections import namedtuple
from struct import Struct

from feeder.errors import PacketError
from feeder.seal import TRAILER_BYTES

MAGIC = 0x51524446                    # "FDRQ" as bytes on the wire
VERSION = 1
CONTROL = Struct("<IBBHQQII16s")
assert CONTROL.size == 48

REQUEST, CHALLENGE, UNAVAILABLE, BUSY = 1, 2, 3, 4
KIND_NAMES = {1: "request", 2: "challenge", 3: "unavailable", 4: "busy"}
TOKEN_BYTES = 16
NO_TOKEN = bytes(TOKEN_BYTES)
MAX_COUNT = 65_535
MAX_NUMBER = 2**64 - 1
MAX_PACKETS = 64                      # answered to one request
MAX_BYTES = CONTROL.size + TRAILER_BYTES

Control = namedtuple("Control", "kind channel session first count wait_us token")


def encode(control, seal=None):
    """Return the datagram of a Control, signed where there is a key."""
    kind, channel, session, first, count, wait_us, token = control
    data = CONTROL.pack(MAGIC, VERSION, kind, channel, session, first, count, wait_us, token)
    return data if seal is None else data + seal.sign(data)


def decode(data, seal=None):
    """Return the Control in a datagram (any buffer). With a seal it must verify; without, a trailer is not read.

    Raises PacketError: not ours, another version, a kind that does not exist, a count of 0 or beyond the limit.
    """
    if len(data) not in (CONTROL.size, MAX_BYTES):
        raise PacketError(f"control datagram of {len(data)} bytes, expected {CONTROL.size} or {MAX_BYTES}")
    magic, version, *fields = CONTROL.unpack_from(data)
    if magic != MAGIC:
        raise PacketError(f"control magic is {magic:#010x}, expected {MAGIC:#010x}")
    if version != VERSION:
        raise PacketError(f"control version {version}, this reads version {VERSION}")
    control = Control._make(fields)
    if control.kind not in KIND_NAMES:
        raise PacketError(f"control datagram of kind {control.kind}")
    if not 1 <= control.count <= MAX_COUNT or not 1 <= control.first <= MAX_NUMBER - control.count:
        raise PacketError(f"control datagram about {control.count} messages from {control.first}")
    if seal is not None and not (len(data) == MAX_BYTES and seal.verify(data)):
        raise PacketError("control datagram that is not signed with our key")
    return control


def is_control(data):
    """Whether a datagram says that it is one of these."""
    return data[:4] == b"FDRQ"
