"""permessage-deflate (RFC 7692): what is negotiated, and one compressor or decompressor per direction.

In:   message payloads, whole to compress, in pieces to decompress.   Out: the same, compressed or plain.

A compressed message is a raw DEFLATE stream flushed with an empty stored block whose last four bytes,
00 00 FF FF, are cut off by the sender (§7.2.1) and put back by the receiver (§7.2.2). Unless
`no_context_takeover` was agreed, one stream spans all messages of a direction.

Not here: the frames (connection.py), and the headers that carry the options (handshake.py).
"""

import zlib

from ..errors import ProtocolError

EXTENSION = "permessage-deflate"
TAIL = b"\x00\x00\xff\xff"
MAX_FINAL_BLOCKS = 256      # of one message; each makes a new decompressor, and no sender needs more than one
FLAGS = ("server_no_context_takeover", "client_no_context_takeover")
WINDOWS = ("server_max_window_bits", "client_max_window_bits")


class DeflateOptions:
    """The four parameters of §7.1; as an offer, as a server's limits, or as what both agreed on."""

    __slots__ = FLAGS + WINDOWS

    def __init__(self, server_no_context_takeover=False, client_no_context_takeover=False,
                 server_max_window_bits=15, client_max_window_bits=15):
        for name, bits in zip(WINDOWS, (server_max_window_bits, client_max_window_bits)):
            if not 8 <= bits <= 15:
                raise ValueError("%s is %r, expected 8 to 15" % (name, bits))
        self.server_no_context_takeover = bool(server_no_context_takeover)
        self.client_no_context_takeover = bool(client_no_context_takeover)
        self.server_max_window_bits = server_max_window_bits
        self.client_max_window_bits = client_max_window_bits

    def __repr__(self):
        return "DeflateOptions(%s)" % ", ".join("%s=%r" % (name, getattr(self, name)) for name in self.__slots__)

    def __eq__(self, other):
        return isinstance(other, DeflateOptions) and repr(self) == repr(other)

    __hash__ = None

    def header(self, offer=False):
        """The value of Sec-WebSocket-Extensions; an offer always lets the server limit our window (§7.1.2.2)."""
        parts = [EXTENSION]
        parts += [name for name in FLAGS if getattr(self, name)]
        parts += ["%s=%d" % (name, getattr(self, name)) for name in WINDOWS if getattr(self, name) < 15]
        if offer and self.client_max_window_bits == 15:
            parts.append("client_max_window_bits")
        return "; ".join(parts)


def accept_answer(offered, parameters):
    """Client side: the options a server's answer means, checked against our offer (§7.1); raises ProtocolError."""
    answer = _parse(parameters)
    if answer.get("client_max_window_bits", 0) is None:
        raise ProtocolError("permessage-deflate answer: client_max_window_bits has no value", 1010)
    agreed = DeflateOptions(**answer)
    if offered.server_no_context_takeover and not agreed.server_no_context_takeover:
        raise ProtocolError("permessage-deflate answer lacks server_no_context_takeover, which was asked for", 1010)
    for name in WINDOWS:
        # Leaving out client_max_window_bits only means the server sets no limit; ours may still be smaller.
        if name == "client_max_window_bits" and name not in answer:
            agreed.client_max_window_bits = offered.client_max_window_bits
        elif getattr(agreed, name) > getattr(offered, name):
            raise ProtocolError("permessage-deflate answer: %s is %d, offered %d"
                                % (name, getattr(agreed, name), getattr(offered, name)), 1010)
    agreed.client_no_context_takeover |= offered.client_no_context_takeover     # a promise of ours, answered or not
    return agreed


def choose_offer(allowed, offers):
    """Server side: (agreed options, header value) for the first acceptable offer in client order, or None."""
    for parameters in offers:
        try:
            offer = _parse(parameters)
        except ProtocolError:
            continue                    # §7.1: an offer we do not understand is declined, not an error
        limits_client = "client_max_window_bits" in offer
        client_bits = offer.get("client_max_window_bits") or 15
        agreed = DeflateOptions(
            offer.get("server_no_context_takeover", False) or allowed.server_no_context_takeover,
            offer.get("client_no_context_takeover", False) or allowed.client_no_context_takeover,
            min(offer.get("server_max_window_bits", 15), allowed.server_max_window_bits),
            # §7.1.2.2: may only be answered when offered; without it the client uses the full window
            min(client_bits, allowed.client_max_window_bits) if limits_client else 15)
        value = agreed.header()
        if offer.get("server_max_window_bits") == agreed.server_max_window_bits == 15:
            value += "; server_max_window_bits=15"      # §7.1.2.1: asked for, so it must be answered
        return agreed, value
    return None


def _parse(parameters):
    """Check one list of (name, value or None) against §7.1; return the ones present, windows as int or None."""
    found = {}
    for name, value in parameters:
        if name in found:
            raise ProtocolError("permessage-deflate: parameter %s is given twice" % name, 1010)
        if name in FLAGS and value is None:
            found[name] = True
        elif name == "client_max_window_bits" and value is None:
            found[name] = None          # legal in an offer only
        elif name in WINDOWS and value in ("8", "9", "10", "11", "12", "13", "14", "15"):
            found[name] = int(value)
        else:
            raise ProtocolError("permessage-deflate: parameter %s=%s is not known" % (name, value), 1010)
    return found


class Deflater:
    """Compresses whole messages of one direction."""

    __slots__ = ("_bits", "_fresh_each", "_stream")

    def __init__(self, no_context_takeover, window_bits):
        self._bits = window_bits
        self._fresh_each = no_context_takeover
        self._stream = None

    def compress(self, payload):
        """The compressed payload, or None when it must go uncompressed (always allowed, §6.1)."""
        if self._bits == 8:
            return None                 # zlib cannot make raw streams of a 256-byte window since 1.2.9
        if not payload:
            return b"\x00"              # §7.2.3.6; zlib flushes nothing at all when nothing came in
        stream = self._stream
        if stream is None:
            stream = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, -self._bits)
            if not self._fresh_each:
                self._stream = stream
        return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Inflater:
    """Decompresses messages of one direction, piece by piece, never making more than it is allowed to."""

    __slots__ = ("_fresh_each", "_stream", "_final_blocks", "_history")

    def __init__(self, no_context_takeover):
        self._fresh_each = no_context_takeover
        # Always the full window, whatever was agreed: it reads every smaller one, also those of old zlibs
        # that write 512 bytes when 256 were agreed.
        self._stream = zlib.decompressobj(-15)
        self._final_blocks = 0

    def feed(self, piece, room_bytes, last):
        """The plain bytes of one piece of a message; `last` ends the message.

        Raises: ProtocolError, 1009 when there would be more than `room_bytes`, 1007 when it is not DEFLATE.
        """
        if last:
            piece += TAIL
        try:
            plain = self._stream.decompress(piece, room_bytes + 1)
            while self._stream.eof and len(plain) <= room_bytes:
                plain = self._continue_after_final(plain, room_bytes)
        except zlib.error as error:
            raise ProtocolError("compressed message is broken: %s" % error, 1007) from None
        if len(plain) > room_bytes:
            raise ProtocolError("compressed message is larger than the limit by at least %d bytes"
                                % (len(plain) - room_bytes), 1009)
        if last:
            self._final_blocks = 0
            if self._fresh_each:
                self._stream = zlib.decompressobj(-15)
        return plain

    def _continue_after_final(self, plain, room_bytes):
        """A block with BFINAL ends a DEFLATE stream but not the message (§7.2.3.4): go on with a new stream.

        The new stream is given what this piece held as its window. A later reference behind that is not
        served: zlib then reports a distance too far back, which is a fault and not silent.
        """
        self._final_blocks += 1
        if self._final_blocks > MAX_FINAL_BLOCKS:
            raise ProtocolError("compressed message has more than %d final blocks" % MAX_FINAL_BLOCKS, 1007)
        rest = self._stream.unused_data
        self._stream = zlib.decompressobj(-15, zdict=plain[-32768:])
        return plain + self._stream.decompress(rest, room_bytes + 1 - len(plain))
