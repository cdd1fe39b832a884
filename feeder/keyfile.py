"""The key that packets are signed with, from a file; for publisher, listeners and retransmission alike.

The file's bytes are the key, without white space at both ends, so that an editor's newline does no harm:
`head -c 32 /dev/urandom | base64 > feeder.key` makes one. On every host it is the same file.
"""

import os
import stat

from feeder.errors import ConfigError
from feeder.seal import MAX_KEY_BYTES, Seal


def read_key(path):
    """Return the Seal of a key file. Raises ConfigError: it cannot be read, everybody can read it, wrong size."""
    try:
        with open(path, "rb") as file:
            is_open = os.name == "posix" and os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWOTH)
            key = file.read(MAX_KEY_BYTES + 64)
    except OSError as error:
        raise ConfigError(f"key file {path}: {error.strerror or error}") from None
    if is_open:
        raise ConfigError(f"key file {path}: everybody on this host may read or write it; chmod 640 {path}")
    try:
        return Seal(key.strip())
    except ConfigError as error:
        raise ConfigError(f"key file {path}: {error}") from None
