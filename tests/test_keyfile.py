"""The key file: what is refused, and how that is said."""

import os

import pytest

from feeder.errors import ConfigError
from feeder.keyfile import read_key
from feeder.seal import Seal


def key_file(folder, content, mode=0o640):
    path = folder / "feeder.key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_white_space_around_the_key_is_not_part_of_it(tmp_path):
    assert read_key(key_file(tmp_path, b"\n0123456789abcdef\r\n")).key == b"0123456789abcdef"
    assert read_key(tmp_path / "feeder.key").sign(b"datagram") == Seal(b"0123456789abcdef").sign(b"datagram")


@pytest.mark.parametrize("content, text", [
    (b"short\n", "feeder.key: key of 5 bytes, expected 16 to 1024"), (b"", "key of 0 bytes"),
    (b"x" * 5000, "key of 1088 bytes")])
def test_wrong_size(tmp_path, content, text):
    with pytest.raises(ConfigError, match=text):
        read_key(key_file(tmp_path, content))


def test_not_there(tmp_path):
    with pytest.raises(ConfigError, match="key file .*none: No such file"):
        read_key(tmp_path / "none")


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX")
@pytest.mark.parametrize("mode, is_refused", [(0o644, True), (0o602, True), (0o640, False), (0o400, False)])
def test_open_to_everybody(tmp_path, mode, is_refused):
    path = key_file(tmp_path, b"0123456789abcdef", mode)
    if is_refused:
        with pytest.raises(ConfigError, match=f"chmod 640 {path}"):
            read_key(path)
    else:
        assert read_key(path)
