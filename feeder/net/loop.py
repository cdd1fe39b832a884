"""One thread's event loop: sockets that are ready, then what other threads posted, then timers, then `on_idle`.

In:   file descriptors with callbacks, timers, functions posted from any thread or signal handler.
Hot:  run_once; a round with one ready socket costs one system call and a few microseconds.

    run_once:   select ──▶ read/write callbacks ──▶ posts ──▶ due timers ──▶ on_idle

A round runs the posts and timers that were there when it came to them; those they add wait for the next
round, so no chain of callbacks keeps the sockets waiting. A callback that raises is logged, counted in
`errors`, and costs nobody else anything; KeyboardInterrupt and SystemExit pass through.

The selector counts in milliseconds and rounds up: a timer never fires early, and up to 1 ms late unless the
caller polls with run_once(0) or the idle strategy does (see idle.py).

`event_interval` bounds what a stream does in its turn: it reads `turn_buffer`, as many bytes as that many messages
of the ordinary length. Time goes with bytes, so a busy connection holds the others, the timers and the posts back for
0.6 ms instead of the 7 ms that a whole buffer takes, at no visible cost in throughput (docs/experiments.md).

Not here: closing what was registered. Whoever opened a socket unregisters and closes it.
"""

import heapq
import logging
import selectors
import socket
from collections import deque

from ..clock import steady_ns
from .idle import Sleep

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
BUFFER_BYTES = 256 << 10     # one receive buffer for all streams of the loop; they use it in turn
MESSAGE_BYTES = 256          # the mean of a venue's messages: 65 % quotes of 180 bytes, 20 % trades, 15 % diffs
MAX_POSTS = 65_536
COMPACT_FROM = 256           # cancelled timers that are let lie in the heap before it is rebuilt

log = logging.getLogger("feeder.net")


class Timer:
    """A callback to come; `cancel` is cheap and may be called at any time, even after it ran."""

    __slots__ = ("deadline_ns", "_fn", "_loop")

    def __init__(self, deadline_ns, fn, loop):
        self.deadline_ns = deadline_ns
        self._fn = fn
        self._loop = loop

    @property
    def is_pending(self):
        return self._fn is not None

    def cancel(self):
        if self._fn is not None:
            self._fn = None              # lets go of what the callback holds, the heap entry may lie for long
            self._loop._timer_cancelled()


class _Watch:
    """The callbacks of one file descriptor; None once it was unregistered, even in the middle of a round."""

    __slots__ = ("read", "write")

    def __init__(self, read, write):
        self.read = read
        self.write = write


class Loop:
    def __init__(self, buffer_bytes=BUFFER_BYTES, max_posts=MAX_POSTS, idle=None, event_interval=0):
        """`idle`: what to do while nothing comes, Sleep by default; `event_interval` 0: turns are a whole buffer."""
        self.on_idle = None
        self.errors = 0              # callbacks that raised
        self.posts_refused = 0
        self.max_posts = max_posts
        self.buffer = memoryview(bytearray(buffer_bytes))
        self.turn_buffer = self.buffer[:event_interval * MESSAGE_BYTES or buffer_bytes]
        self.idle = idle or Sleep()
        self._selector = selectors.DefaultSelector()
        self._heap = []              # (deadline_ns, order of creation, Timer)
        self._timer_count = 0
        self._cancelled = 0          # of the timers in the heap
        self._round_ns = 0           # what time it was when timers were last looked at
        self._posts = deque()
        self._stopping = self._closed = self._woken = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self.register(self._wake_in, read=self._drain_wake)

    # -- sockets

    def register(self, sock, read=None, write=None):
        """Call `read()` when the socket has bytes or an end, `write()` when it takes bytes. At least one of them."""
        self._selector.register(sock, _events(read, write), _Watch(read, write))

    def modify(self, sock, read=None, write=None):
        """State both callbacks anew; one that is not given is no longer called."""
        key = self._selector.get_key(sock)
        events = _events(read, write)
        key.data.read = read
        key.data.write = write
        if events != key.events:
            self._selector.modify(sock, events, key.data)

    def unregister(self, sock):
        watch = self._selector.unregister(sock).data
        watch.read = watch.write = None

    # -- timers

    def call_at(self, deadline_ns, fn):
        """Call `fn()` in the first round at or after `deadline_ns` on clock.steady_ns; a past one is the next round."""
        # Later than the round that is going on, or a timer that sets another at once would never let it end.
        deadline_ns = max(deadline_ns, self._round_ns + 1)
        timer = Timer(deadline_ns, fn, self)
        self._timer_count += 1
        heapq.heappush(self._heap, (deadline_ns, self._timer_count, timer))
        return timer

    def call_after(self, delay_ns, fn):
        return self.call_at(steady_ns() + delay_ns, fn)

    def _timer_cancelled(self):
        self._cancelled += 1
        if self._cancelled > COMPACT_FROM and self._cancelled * 2 > len(self._heap):
            self._heap[:] = [entry for entry in self._heap if entry[2]._fn is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    # -- other threads

    def post(self, fn):
        """Have the loop call `fn()`. From any thread, and from signal handlers: no lock is taken.

        Returns False, and counts it, when `max_posts` wait already or the loop is closed.
        """
        if self._closed or len(self._posts) >= self.max_posts:
            self.posts_refused += 1
            return False
        self._posts.append(fn)
        self._wake()
        return True

    def _wake(self):
        # The loop clears the flag before it looks at the posts: who finds it set was in time.
        if not self._woken:
            self._woken = True
            try:
                self._wake_out.send(b"\0")
            except OSError:          # closed meanwhile, or full: then it is awake anyway
                pass

    def _drain_wake(self):
        try:
            self._wake_in.recv(64)
        except BlockingIOError:
            pass
        self._woken = False

    # -- running

    def run(self):
        """Run rounds until stop(); a stop() that came before counts too."""
        while not self._stopping:
            self.run_once()
        self._stopping = False

    def stop(self):
        """End run() after the round going on. From any thread or signal handler."""
        self._stopping = True
        self._wake()

    def run_once(self, max_wait_ns=None):
        """Run one round; wait for the first event at most `max_wait_ns`, None is without limit."""
        if self._posts:
            max_wait_ns = 0
        elif self._heap and max_wait_ns != 0:
            until_timer = max(0, self._heap[0][0] - steady_ns())
            max_wait_ns = until_timer if max_wait_ns is None else min(max_wait_ns, until_timer)
        for key, events in self.idle.wait(self._selector.select, max_wait_ns):
            watch = key.data
            if events & READ and watch.read is not None:
                self._call(watch.read)
            if events & WRITE and watch.write is not None:
                self._call(watch.write)
        for _ in range(len(self._posts)):
            self._call(self._posts.popleft())
        if self._heap:
            self._run_timers()
        if self.on_idle is not None:
            self._call(self.on_idle)

    def _run_timers(self):
        heap = self._heap
        self._round_ns = now_ns = steady_ns()
        while heap and heap[0][0] <= now_ns:
            timer = heapq.heappop(heap)[2]
            fn, timer._fn = timer._fn, None
            if fn is None:
                self._cancelled -= 1
            else:
                self._call(fn)

    def _call(self, fn):
        try:
            fn()
        except Exception:
            self.errors += 1
            log.exception("callback %r failed", fn)

    def close(self):
        """Close the loop's own descriptors. Posts and timers that are left are dropped, not called."""
        if self._closed:
            return
        self._closed = True
        self.unregister(self._wake_in)
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()
        self._posts.clear()
        self._heap.clear()
        self.on_idle = None


def _events(read, write):
    events = (READ if read is not None else 0) | (WRITE if write is not None else 0)
    if not events:
        raise ValueError("neither a read nor a write callback; use unregister")
    return events
