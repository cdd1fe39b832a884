"""Who lost something asks for it: of several servers, in order, spaced, and no more than it has to.

In:   what is missing, as the receiver sees it now; what came to the asking socket.   Out: requests; what nobody has.

    missing    1001 ........................ 1300          ranges of Receiver.wanted()
    pieces     1001-1064  1065-1128  ...  1257-1300        of PIECE messages, which one answer always holds

Each piece has its own fate: asked for after FIRST_NS (it may be only reordered); of the next server when no answer
came, each round after twice the time. UNAVAILABLE takes the server off the piece's list; a piece whose list is empty is
told to the caller, who need not wait for it any longer. What came in the meantime, by whatever way, is no longer
missing: ask() goes by what is missing now, pieces shrink and vanish by that alone.

A server that has not given its token is asked for one piece only until it does. One that answers nothing is asked where
no other is left. Which one has a stream is remembered.

An answer counts only if it comes from a server and fits a piece that it was asked for; the session in it is a number
that a stranger would have to guess. With a seal it has to be signed, too.
"""

from struct import Struct

from feeder.clock import MICROSECOND, MILLISECOND, SECOND
from feeder.errors import PacketError
from feeder.packet import RETRANSMITTED, SNAPSHOTS

from .bucket import Bucket
from .datagram import BUSY, CHALLENGE, MAX_PACKETS, NO_TOKEN, REQUEST, Control, decode, encode, is_control

PIECE = MAX_PACKETS                   # a packet holds one message at least
WINDOW = 64                           # pieces that are being asked for
FIRST_NS = MILLISECOND
RETRY_NS = 5 * MILLISECOND            # or twice the way there and back, if that is longer
MAX_RETRY_NS = SECOND
TRIES = 8                             # of one piece, of each server
SILENT_NS = 50 * MILLISECOND          # without any answer; or four times the way
MAX_BUSY_NS = SECOND
MAX_HOLDERS = 64
REQUESTS_PER_SECOND = 5_000
HEADER_BYTES = 40
PACKET = Struct("<IBBHQQ8xH")         # magic, version, flags, channel, session, sequence, message_count


class Peer:
    """One server."""

    def __init__(self, address, bit):
        self.address = address
        self.bit = bit
        self.token = NO_TOKEN
        self.way_ns = 0               # there and back, as it was seen last
        self.asked_ns = None          # the first request since it answered anything
        self.probe_ns = 0             # until then no second request without a token
        self.busy_ns = 0              # it does not want to be asked before
        self.requests = self.packets = self.challenges = self.busy = self.unavailable = 0

    def is_silent(self, now_ns):
        return self.asked_ns is not None and now_ns - self.asked_ns > max(SILENT_NS, 4 * self.way_ns)

    @property
    def patience_ns(self):
        return min(max(RETRY_NS, 2 * self.way_ns), MAX_RETRY_NS)


class Piece:
    """Messages first..last of a stream, and what was done to get them."""

    __slots__ = ("first", "last", "due_ns", "tries", "waits", "first_ns", "asked_ns", "asked", "refused",
                 "is_challenged")

    def __init__(self, first, last, due_ns):
        self.first, self.last = first, last
        self.due_ns = due_ns          # when to ask, or ask again
        self.tries = self.waits = 0   # how often it was asked for; without the requests that a token was wanting for
        self.first_ns = self.asked_ns = 0             # when it was asked for first, when last
        self.asked = self.refused = 0                 # bits of servers
        self.is_challenged = False

    def cut(self, first, last):
        """Return the part within first..last."""
        first, last = max(first, self.first), min(last, self.last)
        if (first, last) == (self.first, self.last):
            return self
        part = Piece(first, last, self.due_ns)
        for name in ("tries", "waits", "first_ns", "asked_ns", "asked", "refused", "is_challenged"):
            setattr(part, name, getattr(self, name))
        return part


class Stream:
    __slots__ = ("pieces", "seen")

    def __init__(self):
        self.pieces = []              # ascending
        self.seen = 0                 # up to here it was missing before, so it is not merely late


class Client:
    """Args: servers [(host, port), ...] in the order to ask them. Nothing is sent here: ask() says what and where."""

    def __init__(self, servers, seal=None, requests_per_second=REQUESTS_PER_SECOND):
        self.peers = [Peer((host, port), 1 << at) for at, (host, port) in enumerate(servers)]
        self.by_address = {peer.address: peer for peer in self.peers}
        self.everybody = (1 << len(self.peers)) - 1
        self.seal = seal
        self.bucket = Bucket(requests_per_second, WINDOW)
        self.wanted = ()
        self.streams = {}             # (channel, session): Stream
        self.holders = {}             # (channel, session): Peer that had it
        self.deadline_ns = None       # when ask() has something to do, though nothing new is missing; None: nothing
        self.counts = dict.fromkeys(("malformed", "strangers", "unasked"), 0)

    # -- asking ----------------------------------------------------------------------------------------------

    def ask(self, wanted, now_ns):
        """Return [(server's address, request), ...]; `wanted`, (channel, session, first, last), is all that is missing.

        To be called whenever `wanted` may have changed, and at `deadline_ns`; cheap where there is nothing to do.
        """
        wanted = tuple(wanted)
        if wanted == self.wanted and (self.deadline_ns is None or now_ns < self.deadline_ns):
            return []
        self.wanted = wanted
        self.settle(now_ns)
        requests = []
        for key, stream in self.streams.items():
            for piece in stream.pieces:
                if piece.due_ns <= now_ns and self.is_open(piece):
                    requests += self.request(key, piece, now_ns)
        self.schedule()
        return requests

    def settle(self, now_ns):
        """Make pieces of what is wanted: the old ones where they still are, new ones for the rest, WINDOW in all."""
        before, self.streams = self.streams, {}
        room = WINDOW
        for channel, session, first, last in self.wanted:
            key = channel, session
            old = before.get(key) or Stream()
            stream = self.streams.setdefault(key, Stream())
            stream.seen = max(stream.seen, old.seen, last)
            for piece in [*old.pieces, None]:
                if piece is not None and piece.last < first:
                    continue
                is_here = piece is not None and piece.first <= last
                stop = piece.first if is_here else last + 1
                while first < stop and room > 0:
                    end = min(first + PIECE, stop)
                    stream.pieces.append(Piece(first, end - 1, now_ns if first <= old.seen else now_ns + FIRST_NS))
                    first = end
                    room -= 1
                if not is_here:
                    break
                stream.pieces.append(piece.cut(first, last))
                first = piece.last + 1
                room -= 1

    def request(self, key, piece, now_ns):
        """Return the request for a piece that is due, as a list: empty if it has to wait, which `due_ns` then says."""
        peers = [peer for peer in self.peers if not piece.refused & peer.bit]
        free = [peer for peer in peers if peer.busy_ns <= now_ns]
        if not free:
            piece.due_ns = min(peer.busy_ns for peer in peers)
            return []
        alive = [peer for peer in free if not peer.is_silent(now_ns)] or free
        holder = self.holders.get(key)
        alive.sort(key=lambda peer: peer is not holder)
        peer = alive[piece.tries % len(alive)]
        wait_ns = self.bucket.wait_ns(1, now_ns)
        if peer.token == NO_TOKEN and peer.probe_ns > now_ns:
            piece.due_ns = peer.probe_ns
            return []
        if wait_ns:
            piece.due_ns = now_ns + wait_ns
            return []
        self.bucket.take(1, now_ns)
        piece.due_ns = now_ns + min(peer.patience_ns << piece.waits // len(alive), MAX_RETRY_NS)
        if not piece.tries:
            piece.first_ns = now_ns
        piece.tries += 1
        piece.waits += 1
        piece.asked_ns = now_ns
        piece.asked |= peer.bit
        peer.requests += 1
        if peer.asked_ns is None:
            peer.asked_ns = now_ns
        if peer.token == NO_TOKEN:
            peer.probe_ns = piece.due_ns
        request = Control(REQUEST, *key, piece.first, piece.last - piece.first + 1, 0, peer.token)
        return [(peer.address, encode(request, self.seal))]

    def is_open(self, piece):
        """Whether there is still somebody to ask."""
        return piece.refused != self.everybody and piece.tries < TRIES * len(self.peers)

    def schedule(self):
        self.deadline_ns = min((piece.due_ns for stream in self.streams.values() for piece in stream.pieces
                                if self.is_open(piece)), default=None)

    # -- answers ---------------------------------------------------------------------------------------------

    def receive(self, data, address, now_ns):
        """Take what came to the asking socket: None, it is a packet for the Receiver; else a list of ranges nobody has.

        Each of these is (channel, session, first, last), for Receiver.give_up(); mostly there are none.
        """
        if not self.knows(address):
            return []
        peer = self.by_address[address[:2]]
        if not is_control(data):
            return None if self.take_packet(data, peer, now_ns) else []
        try:
            control = decode(data, self.seal)
        except PacketError:
            self.counts["malformed"] += 1
            return []
        kind, channel, session, first, count, wait_us, token = control
        peer.asked_ns = None
        last = first + count - 1
        pieces = self.pieces((channel, session), first, last, peer) if kind != REQUEST else []
        if not pieces:
            self.counts["unasked"] += 1
            return []
        self.time(peer, pieces, now_ns)
        gone = []
        if kind == CHALLENGE:
            peer.challenges += 1
            self.challenged(peer, token, pieces, now_ns)
        elif kind == BUSY:
            peer.busy += 1
            peer.busy_ns = now_ns + min(max(wait_us * MICROSECOND, MILLISECOND), MAX_BUSY_NS)
            for piece in pieces:      # of another server, if there is one
                piece.due_ns = now_ns
                piece.tries -= piece.tries > 0
        else:
            peer.unavailable += 1
            gone = self.refused(peer, (channel, session), pieces, first, last, now_ns)
        self.schedule()
        return gone

    def knows(self, address):
        """Whether this is a server's; who is none is counted."""
        is_known = address[:2] in self.by_address
        self.counts["strangers"] += not is_known
        return is_known

    def take_packet(self, data, peer, now_ns):
        if len(data) < HEADER_BYTES:
            self.counts["malformed"] += 1
            return False
        _, _, flags, channel, session, sequence, count = PACKET.unpack_from(data)
        key = channel, session
        peer.asked_ns = None
        pieces = self.pieces(key, sequence, sequence + count - 1, peer) if count and not flags & SNAPSHOTS else []
        if not pieces or not flags & RETRANSMITTED:
            self.counts["unasked"] += 1
            return False
        peer.packets += 1
        self.time(peer, pieces, now_ns)
        for piece in pieces:          # the rest of the answer may be on its way
            piece.due_ns = max(piece.due_ns, now_ns + peer.patience_ns)
        self.holders.pop(key, None)
        self.holders[key] = peer
        if len(self.holders) > MAX_HOLDERS:
            del self.holders[next(iter(self.holders))]
        return True

    def pieces(self, key, first, last, peer):
        """Return the pieces of a stream that a server was asked for and that hold some of first..last."""
        stream = self.streams.get(key)
        return [piece for piece in (stream.pieces if stream is not None else ())
                if piece.first <= last and first <= piece.last and piece.asked & peer.bit]

    def time(self, peer, pieces, now_ns):
        """Learn how long the way is; after a second request, whose answer this may be, only that it is not shorter.

        Where nothing is known the first request counts: else a way longer than RETRY_NS would never be learned.
        """
        for piece in pieces:
            if piece.tries == 1 or not peer.way_ns and piece.asked == peer.bit:
                peer.way_ns = now_ns - piece.first_ns
            else:
                peer.way_ns = max(peer.way_ns, now_ns - piece.asked_ns)

    def challenged(self, peer, token, pieces, now_ns):
        """Ask again with the token, at once: the piece that was, once, and those that waited for it."""
        peer.token = token
        for stream in self.streams.values():
            for piece in stream.pieces:
                if piece.due_ns == peer.probe_ns:
                    piece.due_ns = now_ns
        for piece in pieces:
            if not piece.is_challenged:
                piece.is_challenged = True
                piece.tries -= piece.tries > 0           # of the same server
                piece.waits = 0
                piece.due_ns = now_ns
        peer.probe_ns = 0

    def refused(self, peer, key, pieces, first, last, now_ns):
        """Note that a server does not have first..last; return what now nobody has."""
        gone = []
        parts = self.streams[key].pieces
        for piece in pieces:
            rest = [piece.cut(begin, end) for begin, end in ((piece.first, first - 1), (last + 1, piece.last))
                    if begin <= end]
            part = piece.cut(first, last)
            part.refused |= peer.bit
            part.due_ns = now_ns
            at = parts.index(piece)
            parts[at:at + 1] = sorted([part, *rest], key=lambda each: each.first)
            if part.refused == self.everybody:
                gone.append((*key, part.first, part.last))
        return gone
