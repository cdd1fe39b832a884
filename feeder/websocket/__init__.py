"""WebSocket (RFC 6455) with permessage-deflate (RFC 7692), both roles, as machines: bytes in, events and bytes out.

handshake turns the first bytes of a TCP stream into headers and options, connection turns all later ones into
messages, deflate serves both. None of them touches a socket or a clock; net/ and the wiring do.
"""

from .connection import BINARY, CLIENT, CLOSE, PING, PONG, SERVER, TEXT, Connection
from .deflate import DeflateOptions
from .handshake import ClientHandshake, HttpRequest, ServerHandshake, http_response

__all__ = ["BINARY", "CLIENT", "CLOSE", "ClientHandshake", "Connection", "DeflateOptions", "HttpRequest", "PING",
           "PONG", "SERVER", "ServerHandshake", "TEXT", "http_response"]
