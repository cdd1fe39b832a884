"""`feeder doctor`: is this host ready for the feeder, and if not, what to ask the administrator for.

    facts (host/facts, host/timekeeping, net/probe) ─▶ checks: a Patient's rows ─▶ 80 columns, or one JSON object

Nothing is changed, root or not. The only traffic is one connection to each address of the configured venues, all
within one bounded time. The last lines are the cores recommended for this machine.
"""

import os
import re
import sys
import sysconfig
import textwrap

from feeder import config as configuration, report
from feeder.checks import OK, UNKNOWN, WORST_FIRST, Patient, examine, verdict
from feeder.host.facts import Host, cpus_text
from feeder.screen import Screen, printable


try:
    from feeder.host.timekeeping import read_clock
except ImportError:                    # an interpreter that was built without ctypes
    read_clock = None


def python_build():
    """What kind of interpreter this is."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    # Debian records the arguments of another of its builds than the one it ships, which is optimized.
    is_recorded = bool(arguments) and sys.base_prefix != "/usr"
    jit = getattr(sys, "_jit", None)             # 3.14; before, only the build tells
    return {
        "implementation": sys.implementation.name, "version": sys.version.split()[0],
        "executable": os.path.realpath(sys.executable or "python3"),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(), "debug": hasattr(sys, "gettotalrefcount"),
        "development_mode": sys.flags.dev_mode,
        "jit": jit.is_enabled() if jit else "--enable-experimental-jit" in arguments,
        "optimized": "--enable-optimizations" in arguments or (False if is_recorded else None),
        "pointer_bits": sys.maxsize.bit_length() + 1, "memfd": hasattr(os, "memfd_create"),
        "ctypes": read_clock is not None}


# -- output --------------------------------------------------------------------------------------------------

WIDTH = 79                             # the eightieth column makes some terminals wrap
NAME_COLUMN, TEXT_COLUMN = 10, 27
WORDS = re.compile(r"""(?:[^\s'"]|'[^']*'|"(?:\\.|[^"\\])*"|['"])+""")      # of a shell: what is quoted stays whole


def as_text(patient, groups):
    word, _ = verdict(groups)
    lines = [f"feeder doctor: {patient.config.source}, workers {patient.workers}"]
    for group, rows in groups.items():
        lines += ["", group]
        for each in rows:
            lines += row_text(each)
    counts = {status: sum(each.status == status for rows in groups.values() for each in rows) for status in WORST_FIRST}
    lines += ["", f"{word}: " + ", ".join(f"{count} {status}" for status, count in counts.items() if count), ""]
    return lines + cores_text(patient.cores)


def paragraph(label, name, text):
    head = f"{label:<{NAME_COLUMN}}{name:<{TEXT_COLUMN - NAME_COLUMN}}"
    return textwrap.wrap(printable(text), WIDTH, initial_indent=head, subsequent_indent=" " * TEXT_COLUMN,
                         break_on_hyphens=False) or [head.rstrip()]


def row_text(each):
    if each.status == OK:
        return paragraph("ok", each.name, each.found + (f"   (wanted: {each.wanted})" if each.wanted else ""))
    shown = each.status if each.status == UNKNOWN else each.status.upper()
    lines = paragraph(shown, each.name, each.found)
    for name, text in (("  wanted", each.wanted), ("  costs", each.cost)):
        lines += paragraph("", name, text) if text else []
    return lines + [line for command in each.commands for line in command_text(command)]


def command_text(command):
    """A command in lines that a shell takes as they are; "\\" at the end of a line goes on."""
    lines, line, mark = [], "", "# " if command.startswith("#") else ""
    for word in WORDS.findall(printable(command)):
        if line and len(line) + len(word) > WIDTH - 7:
            lines.append(line + ("" if mark else " \\"))
            line = mark or "  "
            line += word
        else:
            line += " " * bool(line) + word
    return ["    " + text for text in [*lines, line]]


def as_settings(cores):
    """What belongs into hft_config.json, to have the recommended cores."""
    return {"cpu_affinity": {"enabled": cores.publisher is not None,
                             "processor_core": -1 if cores.publisher is None else cores.publisher,
                             "worker_cores": cores.workers, "other_cores": cores.rest},
            "runtime": {"workers": len(cores.workers)}}


def cores_text(cores):
    if cores is None:
        return ["recommended cores for this machine: not known, its processors are not readable"]
    affinity = as_settings(cores)["cpu_affinity"]
    lines = ["recommended cores for this machine"]
    lines += paragraph("", "publisher", "not pinned" if cores.publisher is None else str(cores.publisher))
    lines += paragraph("", "workers", cpus_text(cores.workers) or "none")
    lines += paragraph("", "rest", cpus_text(cores.rest))
    lines += paragraph("", "left idle", cpus_text(cores.idle)) if cores.idle else []
    lines += paragraph("", "because", cores.why)
    lines += paragraph("", "hft_config.json", f"cpu_affinity.processor_core {affinity['processor_core']}, "
                       f"worker_cores {affinity['worker_cores']}, other_cores {affinity['other_cores']}, "
                       f"runtime.workers {len(cores.workers)}")
    return lines


def as_object(patient, groups):
    word, code = verdict(groups)
    cores = patient.cores
    return {"verdict": word, "exit_code": code, "source": patient.config.source, "workers": patient.workers,
            "memory_bytes": patient.memory_bytes, "python": patient.build,
            "rows": [dict(group=group, **each._asdict()) for group, rows in groups.items() for each in rows],
            "recommended": None if cores is None else dict(cores._asdict(), settings=as_settings(cores))}


# -- command -------------------------------------------------------------------------------------------------

def configure(parser):
    parser.description = ("Examine this host for the feeder and name what to ask the administrator for; changes "
                          "nothing.")
    parser.epilog = ("example: python3 -m feeder doctor --config config/feeder/crypto\n"
                     "exit codes: 0 ready, 1 degraded (runs, but slower or later than it could), "
                     "2 unfit (what is\nconfigured cannot work here) or wrong usage or configuration")
    configuration.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def reach(config):
    """Return what the network tells, as keyword arguments of a Patient."""
    try:
        from feeder.net.ethtool import offloads
        from feeder.net.probe import Target, probe, tls_store
        from feeder.net.udp import can_segment
    except ImportError:                # an interpreter that was built without ssl
        return {}
    targets = [(venue.name, Target(url, venue.proxy, venue.ca_file, venue.verify_tls))
               for venue in config.venues for url in (venue.websocket_url, venue.rest_url) if url]
    answers = {}
    for (name, _), answer in zip(targets, probe([target for _, target in targets])):
        answers.setdefault(name, []).append(answer)
    return {"tls": tls_store(), "reached": list(answers.items()), "offloads": offloads, "can_segment": can_segment}


def main(args):
    config = configuration.from_arguments(args)
    patient = Patient(config, Host(), python_build(), clock=read_clock and read_clock(),
                      force_rings=os.environ.get("FEEDER_FORCE_RING") == "1", **reach(config))
    groups = examine(patient)
    if args.json:
        report.write(as_object(patient, groups), "-")
    else:
        Screen().print(*as_text(patient, groups))
    return verdict(groups)[1]
