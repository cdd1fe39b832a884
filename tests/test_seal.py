"""Trailers: signed by the encoder, verified by who has the key, and by nobody else."""

import hashlib
import hmac

import pytest

from feeder.errors import ConfigError
from feeder.packet import FLAGS_AT, RETRANSMITTED, SIGNED, Encoder, LoopEncoder, decode
from feeder.seal import Seal

KEY = bytes(range(32))


def signed(seal, count=30, packet_bytes=512, burst=1):
    out = []
    encoder = Encoder(7, 3, lambda view: out.append(bytes(view)), lambda: 5, packet_bytes, seal)
    encoder.gather(burst, 10**9)
    for number in range(count):
        encoder.trade(1, 2, 1, number, 0, 0, number, 100, 1, 1)
    encoder.heartbeat()
    encoder.end()
    return encoder, out


def test_every_packet_verifies_and_says_what_an_unsigned_one_says():
    _, plain = signed(None)
    encoder, out = signed(Seal(KEY))
    assert len(out) == encoder.packets and all(len(each) <= 512 for each in out)
    trades = [message for each in out for message in decode(each).messages]
    assert trades == [message for each in plain for message in decode(each).messages]
    for each in out:
        assert each[FLAGS_AT] & SIGNED and Seal(KEY).verify(each) and not Seal(KEY[1:]).verify(each)
        assert each[-16:] == hmac.new(KEY, each[:-16], hashlib.sha256).digest()[:16]


def test_in_bursts_all_but_the_last_are_of_one_size_and_each_is_signed():
    _, out = signed(Seal(KEY), count=300, burst=8)
    assert any(len(each) > 512 for each in out)
    for burst in out:
        for at in range(0, len(burst), 512):
            assert Seal(KEY).verify(burst[at:at + 512])
    packets = [decode(burst[at:at + 512]) for burst in out for at in range(0, len(burst), 512)]
    expected = 1
    for packet in packets:
        assert packet.sequence == expected
        expected += packet.message_count


def test_any_changed_bit_is_found_but_the_flag_of_retransmission():
    seal = Seal(KEY)
    datagram = bytearray(signed(seal, 1)[1][0])
    for bit in range(8 * len(datagram)):
        datagram[bit >> 3] ^= 1 << (bit & 7)
        assert seal.verify(datagram) == ((bit >> 3, 1 << (bit & 7)) == (FLAGS_AT, RETRANSMITTED))
        datagram[bit >> 3] ^= 1 << (bit & 7)
    assert not any(seal.verify(datagram[:size]) for size in range(len(datagram)))


def test_loop_packets_state_where_they_hold_and_count_themselves():
    out, next_one = [], [41]
    encoder = LoopEncoder(7, 3, lambda view: out.append(decode(view)), lambda: 5, 512, Seal(KEY), lambda: next_one[0])
    encoder.flush()
    encoder.round(1, 2)
    encoder.flush()
    next_one[0] = 50
    encoder.round(2, 2)
    encoder.flush()
    assert [(packet.sequence, packet.loop, packet.message_count) for packet in out] == [(41, 1, 1), (50, 2, 1)]
    assert out[1].messages[0][1:] == (2, 2)


@pytest.mark.parametrize("size", [0, 15, 1025])
def test_a_key_has_a_size(size):
    with pytest.raises(ConfigError, match=f"key of {size} bytes, expected 16 to 1024"):
        Seal(bytes(size))
