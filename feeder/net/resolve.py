"""Names to addresses, in threads of their own: getaddrinfo blocks, for many seconds when a name server is mute.

A lookup cannot be called off. Its thread is therefore a daemon, whoever asked may stop caring, and the number that
may be under way at once is bounded.
"""

import socket
import threading

from ..host import cpu
from .sockets import NetworkError, os_error_text

MAX_LOOKUPS = 64             # under way at once, whole process
MAX_ADDRESSES = 16           # of one name

_slots = threading.BoundedSemaphore(MAX_LOOKUPS)


def lookup(host, port, on_done):
    """Call `on_done(result)` once: a list of (family, socket address), or a NetworkError.

    A numeric address is answered at once in the caller's thread, a name later in another one.
    """
    try:
        addresses = _addresses(host, port, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        pass                             # a name, then
    else:
        return on_done(addresses)
    if not _slots.acquire(blocking=False):
        return on_done(NetworkError(f"{MAX_LOOKUPS} name lookups are under way already, no more are started"))
    try:
        threading.Thread(target=_run, args=(host, port, on_done), name="feeder-lookup", daemon=True).start()
    except RuntimeError as error:        # no more threads
        _slots.release()
        on_done(NetworkError(f"name lookup: {error}"))


def _run(host, port, on_done):
    cpu.enter(threading.current_thread().name)
    try:
        result = _addresses(host, port, 0)
    except (OSError, UnicodeError) as error:     # UnicodeError: no valid internationalized name
        result = NetworkError(f"name lookup: {os_error_text(error)}")
    finally:
        _slots.release()
    on_done(result)


def _addresses(host, port, flags):
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found][:MAX_ADDRESSES]
