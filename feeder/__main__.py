"""`python3 -m feeder`: see cli.py."""

import sys

from feeder.cli import main

if __name__ == "__main__":
    sys.exit(main())
