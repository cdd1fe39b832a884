"""The command line: finds the command, imports only what it needs, turns errors into sentences and exit codes."""

import argparse
import importlib
import os
import sys

from feeder import __version__
from feeder.errors import FeederError

# name: (module, what it does)
COMMANDS = {
    "run": ("feeder.run", "feed from the venues and publish (the default; without --config from a built-in venue)"),
    "listen": ("feeder.listen", "the udp monitor: receive, check sequences, show books"),
    "retransmit": ("feeder.retransmit", "keep a copy of what is published, send it again to who missed it"),
    "venue": ("feeder.twin.command", "a venue on this machine, for trying, testing and proving a set-up"),
    "replay": ("feeder.replay", "run recordings through decoders, recovery and books"),
    "venues": ("feeder.venues", "list the venues that are supported, and how"),
    "check-config": ("feeder.config", "validate the configuration and say what would be done"),
    "doctor": ("feeder.doctor", "is this host ready, and what to ask its administrator for"),
    "bench": ("feeder.bench", "measure what it costs, against stated references"),
}


def build_parser(name):
    """Return the parser; only `name`'s own options are loaded."""
    parser = argparse.ArgumentParser(
        prog="python3 -m feeder", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Crypto market-data feed handler: exchange WebSocket JSON in, sequenced binary UDP multicast out.",
        epilog="Without a command: run, fed by a built-in venue on this machine. Ctrl-C ends it.\n"
               "example: python3 -m feeder           (in one terminal)\n"
               "         python3 -m feeder listen    (in another)\n"
               "exit codes: 0 done, 1 fault while running, 2 wrong usage, configuration or host, 3 data was lost (listen)")
    parser.add_argument("-V", "--version", action="version", version=f"feeder {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for each, (module, text) in COMMANDS.items():
        command = commands.add_parser(each, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if each == name:
            importlib.import_module(module).configure(command)
    return parser


def main(argv=None):
    """Run one command; return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in argv if not word.startswith("-")), None)
    if name not in COMMANDS:
        if name is None and not {"-h", "--help", "-V", "--version"} & set(argv):
            argv.insert(0, "run")
            name = "run"
        elif argv and argv[0].startswith("-") and not {"-h", "--help", "-V", "--version"} & set(argv):
            argv.insert(0, "run")     # python3 -m feeder --seconds 4
            name = "run"
    try:
        args = build_parser(name).parse_args(argv)
        code = importlib.import_module(COMMANDS[name][0]).main(args)
        sys.stdout.flush()            # here, where a closed pipe is still caught
        return code
    except FeederError as error:
        print(f"feeder: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:           # `feeder listen --print | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
