"""Recordings: gzip or plain text, one JSON object a line, in order of receive time.

    {"t": ns or null, "conn": URL, "kind": "ws" | "rest", "dir": "in" | "out", "raw": text, "op": "bin" if binary}

A REST record stands where its answer arrived. Errors name file and line; a cut file is told after all that
could be read was handed over.
"""

import gzip
import json
import zlib
from collections import namedtuple
from contextlib import ExitStack, contextmanager

from feeder.errors import CaptureError

MAX_LINE_BYTES = 64 << 20
MAX_TIME_NS = 1 << 63

Record = namedtuple("Record", "t conn kind direction payload")


@contextmanager
def opened(path):
    """Give a file open for reading, unpacked where it is packed, and its first byte or more. Raises CaptureError."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))
            if file.peek(2)[:2] == b"\x1f\x8b":             # so that a pipe will do, too
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            head = file.peek(4)
        except (OSError, EOFError, zlib.error) as error:
            raise CaptureError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
        yield file, head


def read(path, file=None):
    """Yield the Records of a recording; `payload` is bytes. `file`: it is open already. Raises CaptureError."""
    if file is None:
        with opened(path) as (file, _):
            yield from read(path, file)
        return
    number = 0
    try:
        while True:
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise CaptureError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes")
            yield record(line, path, number)
    except (OSError, EOFError, zlib.error) as error:
        raise CaptureError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def record(line, path, number):
    try:
        entry = json.loads(line)
        found = Record(entry["t"] if "t" in entry else entry["mono_ns"], entry["conn"], entry["kind"],
                       entry.get("dir", "in"), entry["raw"].encode())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CaptureError(f"{path}, line {number}: not a record ({type(error).__name__}: {error})") from None
    if (found.kind not in ("ws", "rest") or found.direction not in ("in", "out") or not isinstance(found.conn, str)
            or not (found.t is None or type(found.t) is int and 0 <= found.t < MAX_TIME_NS)):
        raise CaptureError(f"{path}, line {number}: not a record "
                           f"(kind {found.kind!r:.40}, dir {found.direction!r:.40}, t {found.t!r:.40})")
    return found
