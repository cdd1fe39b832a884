"""TLS as a machine between two memory buffers; the socket stays with `stream`.

    socket ──▶ feed ──▶ ssl ──▶ read_into ──▶ plain text          plain text ──▶ write ──▶ ssl ──▶ take ──▶ socket

Against an SSLSocket this saves two system calls for each record (OpenSSL reads a header, then a body), lets one
receive bring many records under one time stamp, and leaves one state machine for plain and TLS streams alike.

Who needs it imports it there and then: ssl takes 6 ms to load, which a feed without TLS need not wait for.
"""

import logging
import ssl

from ..errors import ConfigError
from .sockets import NetworkError

log = logging.getLogger("feeder.net")


def tls_context(ca_file=None, verify=True):
    """Client side: TLS 1.2 up, certificate and host name verified against `ca_file` or the system's authorities."""
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:             # SSLError is one too
        raise ConfigError(f"ca_file: {ca_file}: {error.strerror or error}, expected a PEM file") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION       # a write must never have to wait for a read
    if not verify:
        log.warning("TLS verification is off: whoever answers is believed")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def server_tls_context(certificate_file, key_file):
    """Server side, for the venue twin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate_file, key_file)
    return context


def tls_error_text(error):
    """One sentence for an ssl.SSLError, with the remedy where it is known."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"certificate not accepted: {error.verify_message or error.reason}"
        # X509_V_ERR: 18 self-signed, 19 self-signed in chain, 20 no local issuer, 21 no first certificate
        if error.verify_code in (18, 19, 20, 21):
            text += "; if this authority is to be trusted, name its PEM file as ca_file"
        return text
    return error.reason or str(error)


class TlsSession:
    def __init__(self, context, server_name=None, server_side=False):
        self.ended = False               # the peer said goodbye (close_notify); without it an end is a cut
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side,
                                     server_hostname=server_name)

    def feed(self, data):
        self._incoming.write(data)

    def take(self):
        """Return the bytes that must go to the socket, b"" if none. Ask after every other call."""
        return self._outgoing.read()

    def handshake(self):
        """Go on with the handshake; return True when it is done. Raises NetworkError."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise NetworkError(tls_error_text(error)) from None
        return True

    def read_into(self, view):
        """Fill `view` with the plain text of as many records as fit; return the bytes filled.

        Fewer than len(view): there is no more now. Whatever a full view left over, pending() data of a record
        cut in two included, comes with the next call. Raises NetworkError.
        """
        read = self._ssl.read
        filled, size = 0, len(view)
        try:
            while filled < size:
                count = read(size - filled, view[filled:])
                if not count:
                    self.ended = True
                    break
                filled += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            raise NetworkError(tls_error_text(error)) from None
        return filled

    def write(self, data):
        view = memoryview(data)
        while view:
            view = view[self._ssl.write(view):]

    def goodbye(self):
        """Send close_notify without waiting for the peer's (RFC 8446 §6.1)."""
        try:
            self._ssl.unwrap()
        except ssl.SSLError:             # WantRead: ours is written, theirs is not waited for
            pass
