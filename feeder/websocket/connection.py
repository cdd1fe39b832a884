"""One WebSocket connection after its handshake (RFC 6455 §5 to §8): bytes to messages, messages to frames.

In:   `receive` what the peer sent, cut anywhere.   Out: events (opcode, payload), and bytes for the peer.
Hot:  `receive` of a client, short unmasked text frames; measured by `feeder bench frame`.

    open --close()--> closing --peer's close--> closed
    open --peer's close (answered by itself)--> closed
    open, closing --fault--> closed

Data payloads are taken as they arrive: unmasked, inflated, checked as UTF-8 and added to the message under
construction. So a bad message fails at its first bad byte (§8.1), and what waits between two calls is at
most one message of `max_message_bytes` and one unfinished head or control frame (139 bytes).
Events come in wire order; a control frame amid a fragmented message comes before that message.

A peer's fault does not raise: what was good before it is returned, `fault` says what was wrong, the
close frame that answers it is in `take_outgoing`, and later bytes are ignored.
A misuse of ours (a control frame too long, sending when closed) raises ValueError or RuntimeError.
Not here: time. When to ping, and how long to wait for a close, is the wiring's.
"""

import os
from codecs import utf_8_decode
from struct import Struct

from ..errors import ProtocolError
from .deflate import Deflater, Inflater

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
CLIENT, SERVER = "client", "server"

MAX_CONTROL_BYTES = 125             # §5.5
MAX_WAITING_PONG_BYTES = 64 << 10   # beyond it only the newest ping is answered, as §5.5.3 allows
NO_CODE = 1005                      # §7.1.5: what a close without a code is reported as; never on the wire

_OPEN, _CLOSING, _CLOSED = "open", "closing", "closed"
_U16, _U64 = Struct("!H"), Struct("!Q")
_two_words = Struct("!HH").unpack_from
_HEAD16, _HEAD64 = Struct("!BBH"), Struct("!BBQ")


class Connection:
    """One end of one connection; `role` is ours."""

    __slots__ = ("role", "max_message_bytes", "fault", "frames_in", "messages_in", "bytes_in", "_likely", "_state",
                 "_mask_source", "_inflater", "_deflater", "_outgoing", "_rest", "_opcode", "_inflating", "_message",
                 "_text_rest", "_wire_bytes", "_final", "_left", "_key")

    def __init__(self, role, max_message_bytes=16 << 20, deflate=None, mask_source=os.urandom):
        """`deflate`: the agreed DeflateOptions, or None. `mask_source(n)`: n unpredictable bytes (§5.3)."""
        if role not in (CLIENT, SERVER):
            raise ValueError("role is %r, expected CLIENT or SERVER" % (role,))
        self.role = role
        self.max_message_bytes = max_message_bytes
        self.fault = None
        self.frames_in = self.messages_in = self.bytes_in = 0
        self._likely = role == CLIENT
        self._state = _OPEN
        self._mask_source = mask_source
        self._inflater = self._deflater = None
        if deflate:
            to_server = deflate.client_no_context_takeover, deflate.client_max_window_bits
            to_client = deflate.server_no_context_takeover, deflate.server_max_window_bits
            self._deflater = Deflater(*(to_server if role == CLIENT else to_client))
            self._inflater = Inflater((to_client if role == CLIENT else to_server)[0])
        self._outgoing = bytearray()
        self._rest = b""            # an unfinished head, or an unfinished control frame
        # The message under construction; _opcode is 0 when there is none.
        self._opcode = 0
        self._inflating = False
        self._message = bytearray()
        self._text_rest = b""       # an unfinished UTF-8 sequence at its end
        self._wire_bytes = 0
        # The data frame under way; _left is 0 when there is none.
        self._final = True
        self._left = 0
        self._key = b""

    @property
    def is_open(self):
        """Whether messages may be sent."""
        return self._state == _OPEN

    @property
    def is_closed(self):
        """Whether nothing more will be received: the TCP connection may go once `take_outgoing` is sent."""
        return self._state == _CLOSED

    def receive(self, data):
        """Take bytes of the peer; return the events they complete, a list of (opcode, payload).

        TEXT and BINARY: the whole message, bytes; text is valid UTF-8. PING, PONG: bytes (a ping is answered
        by itself). CLOSE: (code, reason), code 1005 when it had none.
        """
        self.bytes_in += len(data)
        events = []
        if self._state is _CLOSED:
            return events                               # §1.4: data after a close is discarded
        buffer = self._rest + data if self._rest else bytes(data)
        at, end = 0, len(buffer)
        try:
            while at < end:
                if self._likely and not self._opcode:
                    # Whole unmasked, unfragmented, uncompressed texts below 64 KiB. All else breaks out.
                    append, last_head, limit, before = events.append, end - 4, self.max_message_bytes, len(events)
                    while at <= last_head:
                        head, length = _two_words(buffer, at)
                        if head == 0x817E:
                            start = at + 4
                            if length < 126:
                                break
                        elif 0x8100 <= head < 0x817E:
                            start = at + 2
                            length = head - 0x8100
                        else:
                            break
                        stop = start + length
                        if stop > end or length > limit:
                            break
                        payload = buffer[start:stop]
                        if not (payload.isascii() or _is_utf8(payload)):
                            break
                        append((1, payload))
                        at = stop
                    taken = len(events) - before
                    self.frames_in += taken
                    self.messages_in += taken
                    if at == end:
                        break
                after = self._take_frame(buffer, at, end, events)
                if after is None:
                    break
                at = after
                if self._state is _CLOSED:
                    at = end
        except ProtocolError as fault:
            at = end
            self._fail(fault)
        self._rest = buffer[at:] if at < end else b""
        return events

    def _take_frame(self, buffer, at, end, events):
        """Take one frame, or what has come of it; return where it stops, None when its head is unfinished."""
        if self._left:
            return self._take_payload(buffer, at, end, events)
        head = self._read_head(buffer, at, end)
        if head is None:
            return None
        opcode, start, length, key = head
        stop = start + length
        if opcode < CLOSE:
            self._final = buffer[at] & 0x80
            if opcode:                                  # a continuation goes on with the message's own
                self._opcode = opcode
                self._inflating = buffer[at] & 0x40
            self._left = length
            self._key = key
            self._wire_bytes += length
            return self._take_payload(buffer, start, end, events)
        if stop > end:
            return None
        payload = buffer[start:stop]
        if key:
            payload = _xor(payload, key)
        if opcode == CLOSE:
            self._take_close(payload, events)
        else:
            events.append((opcode, payload))
            if opcode == PING:
                if len(self._outgoing) > MAX_WAITING_PONG_BYTES:
                    self._outgoing.clear()
                self._outgoing += self._frame(PONG, payload)
        self.frames_in += 1
        return stop

    def _read_head(self, buffer, at, end):
        """Check one frame's head (§5.2); return (opcode, payload start, payload length, key), None if unfinished."""
        if end - at < 2:
            return None
        first, second = buffer[at], buffer[at + 1]
        opcode, length = first & 0x0F, second & 0x7F
        if first & 0x30:
            raise self._error("reserved bits 0x%02X are set" % (first & 0x70))
        if opcode >= CLOSE:
            if opcode > PONG:
                raise self._error("opcode %d is reserved" % opcode)
            if not first & 0x80:
                raise self._error("control frame (opcode %d) is fragmented" % opcode)           # §5.5
            if length > MAX_CONTROL_BYTES:
                raise self._error("control frame (opcode %d) is longer than 125 bytes" % opcode)    # §5.5
        elif opcode > BINARY:
            raise self._error("opcode %d is reserved" % opcode)
        elif opcode and self._opcode:
            raise self._error("a new message starts before the last fragment of the previous one")  # §5.4
        elif not opcode and not self._opcode:
            raise self._error("a continuation frame continues no message")                      # §5.4
        if first & 0x40 and (not self._inflater or opcode not in (TEXT, BINARY)):
            # RFC 7692 §6: only the first frame of a message says that it is compressed
            raise self._error("reserved bit RSV1 is set" + (" on opcode %d" % opcode if self._inflater else ""))
        if self.role == CLIENT and second & 0x80:
            raise self._error("a server's frame is masked")                                     # §5.1
        if self.role == SERVER and not second & 0x80:
            raise self._error("a client's frame is not masked")                                 # §5.1
        start = at + 2
        if length >= 126:
            form, least = (_U16, 126) if length == 126 else (_U64, 0x10000)
            if end - start < form.size:
                return None
            length, = form.unpack_from(buffer, start)
            start += form.size
            if length < least:
                raise self._error("length %d is not in its shortest form" % length)
            if length >> 63:
                raise self._error("length has its highest bit set")
        if opcode < CLOSE and self._wire_bytes + length > self.max_message_bytes:
            raise self._error("message of %d bytes or more is larger than the limit of %d bytes"
                              % (self._wire_bytes + length, self.max_message_bytes), 1009)
        if second & 0x80:
            if end - start < 4:
                return None
            return opcode, start + 4, length, buffer[start:start + 4]
        return opcode, start, length, b""

    def _take_payload(self, buffer, at, end, events):
        """Take what has come of the data frame under way; return where it stops."""
        stop = min(at + self._left, end)
        piece = buffer[at:stop]
        self._left -= stop - at
        if self._key:
            key, turn = self._key, (stop - at) & 3
            piece = _xor(piece, key)
            self._key = key[turn:] + key[:turn]
        done = self._final and not self._left
        if self._inflating:
            piece = self._inflater.feed(piece, self.max_message_bytes - len(self._message), done)
        if self._opcode == TEXT and (self._text_rest or not piece.isascii()):
            self._check_text(piece, done)
        if not self._left:
            self.frames_in += 1
        if not done:
            self._message += piece
            return stop
        if self._message:
            self._message += piece
            piece = bytes(self._message)
            self._message = bytearray()
        events.append((self._opcode, piece))
        self.messages_in += 1
        self._opcode = self._wire_bytes = 0
        return stop

    def _check_text(self, piece, done):
        piece = self._text_rest + piece
        try:
            taken = utf_8_decode(piece, "strict", done)[1]
            rest = piece[taken:]
            if rest[:1] == b"\xed" and rest[1:] >= b"\xa0":
                utf_8_decode(rest, "strict", True)      # a surrogate: the codec would wait for its third byte
        except UnicodeDecodeError as error:
            at = len(self._message) - len(self._text_rest) + len(piece) - len(error.object) + error.start
            raise self._error("text is not UTF-8, byte %d of the message: %s" % (at, error.reason), 1007) from None
        self._text_rest = rest

    def _take_close(self, payload, events):
        code, reason = NO_CODE, ""
        if payload:
            if len(payload) == 1:
                raise self._error("close frame has half a code")                                # §5.5.1
            code, = _U16.unpack_from(payload)
            if not _may_close_with(code):
                raise self._error("close code %d is not allowed on the wire" % code)            # §7.4
            try:
                reason = payload[2:].decode()
            except UnicodeDecodeError:
                raise self._error("close reason is not UTF-8", 1007) from None
        if self._state is _OPEN:
            self._outgoing += self._frame(CLOSE, payload[:2])                                   # §5.5.1: echo the code
        self._state = _CLOSED
        events.append((CLOSE, (code, reason)))

    def _error(self, reason, close_code=1002):
        return ProtocolError("WebSocket frame %d: %s" % (self.frames_in + 1, reason), close_code)

    def _fail(self, fault):
        if self._state is _OPEN:
            reason = str(fault).encode()[:MAX_CONTROL_BYTES - 2].decode("utf-8", "ignore").encode()
            self._outgoing += self._frame(CLOSE, _U16.pack(fault.close_code) + reason)
        self.fault = fault
        self._state = _CLOSED
        self._message = bytearray()

    def take_outgoing(self):
        """The bytes the machine itself wants sent: pongs, the answer to a close, the close after a fault."""
        outgoing = bytes(self._outgoing)
        self._outgoing.clear()
        return outgoing

    def send(self, opcode, payload, compress=True):
        """One message, or a ping or pong, as a frame for the wire. `compress` counts where deflate was agreed."""
        if self._state is not _OPEN:
            raise RuntimeError("the WebSocket is %s: opcode %d cannot be sent" % (self._state, opcode))
        if opcode in (PING, PONG):
            if len(payload) > MAX_CONTROL_BYTES:
                raise ValueError("control payload has %d bytes, at most 125 are allowed" % len(payload))
        elif opcode not in (TEXT, BINARY):
            raise ValueError("opcode %r cannot be sent; close() makes a close frame" % (opcode,))
        elif compress and self._deflater:
            packed = self._deflater.compress(payload)
            if packed is not None:
                return self._frame(opcode | 0x40, packed)
        return self._frame(opcode, payload)

    def close(self, code=1000, reason=""):
        """Start the close handshake: the bytes to send, b"" if it has been started already."""
        if not _may_close_with(code):
            raise ValueError("close code %r is not allowed on the wire" % (code,))
        payload = _U16.pack(code) + reason.encode()
        if len(payload) > MAX_CONTROL_BYTES:
            raise ValueError("close reason has %d bytes, at most 123 are allowed" % (len(payload) - 2))
        if self._state is not _OPEN:
            return b""
        self._state = _CLOSING
        return self.take_outgoing() + self._frame(CLOSE, payload)

    def _frame(self, first, payload):
        """A final frame; `first` is the opcode with RSV1."""
        length = len(payload)
        masked = 0x80 if self.role == CLIENT else 0
        if length < 126:
            head = bytes((0x80 | first, masked | length))
        elif length < 0x10000:
            head = _HEAD16.pack(0x80 | first, masked | 126, length)
        else:
            head = _HEAD64.pack(0x80 | first, masked | 127, length)
        if not masked:
            return head + payload
        key = self._mask_source(4)                      # §5.3: a new one for each frame
        return head + key + _xor(payload, key)


def _may_close_with(code):
    """§7.4.2 and the IANA registry; 1004, 1005, 1006 and 1015 never travel."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def _is_utf8(payload):
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _xor(payload, key):
    """Mask or unmask (§5.3), by one big integer: about 1 ns a byte, thirty times the speed of a loop."""
    size = len(payload)
    pad = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(size, "little")
