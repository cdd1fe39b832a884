"""The udp monitor by itself: the same as `python3 -m feeder listen`, for those who look for it under this name."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from feeder.cli import main  # noqa: E402  (the path comes first)

if __name__ == "__main__":
    sys.exit(main(["listen", *sys.argv[1:]]))
