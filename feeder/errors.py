"""Every error the package raises on purpose, and whose fault it names.

The class says whose: ours is a plain Python exception, these are the operator's (ConfigError), the
venue's (VenueError, ProtocolError, NumberError), the host's (HostError) or a sender's (PacketError).
`exit_code` is what a command ends with when the error reaches the top.
"""


class FeederError(Exception):
    """Base of all; its text is a sentence for the operator."""

    exit_code = 1


class ConfigError(FeederError):
    """Configuration or command line is wrong; the text names file, key, value found, value expected."""

    exit_code = 2


class HostError(FeederError):
    """The host refused something without which the command cannot go on (a log file, a socket)."""

    exit_code = 2


class CaptureError(FeederError):
    """A recording is unreadable, cut, or in a dialect that is not supported; names the file and line."""

    exit_code = 2


class VenueError(FeederError):
    """A venue sent what its protocol does not allow, or told us of an error; names the venue."""


class ProtocolError(VenueError):
    """A peer broke WebSocket or HTTP rules. `close_code` is the RFC 6455 §7.4 code to answer with."""

    def __init__(self, reason, close_code=1002):
        super().__init__(reason)
        self.close_code = close_code


class NumberError(VenueError):
    """Decimal text that is no number, or does not fit its instrument's exponent."""


class PrecisionError(NumberError):
    """More significant digits after the point than the exponent keeps. `decimals` says how many it needs."""

    def __init__(self, reason, decimals):
        super().__init__(reason)
        self.decimals = decimals


class RangeError(NumberError):
    """The scaled value does not fit a signed 64-bit integer."""


class PacketError(FeederError):
    """A datagram that is not, or not wholly, one of ours."""
