"""Where datagrams go, or come from: "239.192.0.1:30001", "[ff15::1]:30001", "10.0.0.7:30001@eth1".

Behind the @ is the interface, by address or name, where it is another than the one that is given for all.
"""

import ipaddress
from collections import namedtuple

from feeder.errors import ConfigError


class Endpoint(namedtuple("Endpoint", "address port interface")):
    """`address` is an IPv4 or IPv6 address as text, `interface` a text or None."""

    __slots__ = ()

    @property
    def is_multicast(self):
        return ipaddress.ip_address(self.address).is_multicast

    def __str__(self):
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}" + (f"@{self.interface}" if self.interface else "")


def parse(text, port=None):
    """Return the Endpoint of a text; `port` is taken where the text has none. Raises ConfigError."""
    where, at, interface = text.partition("@")
    if where.startswith("["):
        address, _, rest = where[1:].partition("]")
        colon, digits = rest[:1], rest[1:]
    else:
        address, colon, digits = where.rpartition(":") if where.count(":") == 1 else (where, "", "")
    try:
        address = str(ipaddress.ip_address(address))
        number = int(digits) if colon == ":" and digits.isascii() and digits.isdigit() else None if not colon else 0
        number = port if number is None else number
        if number is None or not 0 < number < 65_536 or at and not interface:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{text!r}: expected ADDRESS:PORT or [IPv6]:PORT, and @INTERFACE where wanted; such as "
                          "239.192.0.1:30001") from None
    return Endpoint(address, number, interface or None)
