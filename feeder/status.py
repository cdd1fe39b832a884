"""What people and programs are shown of a run: a line, a screen, the report; from the figures its halves tell.

In:   figures (stages.py) of one Output, and of all Inputs `added` up.   Out: lines of text; a JSON-ready dict.
"""

from feeder import clock, log as logs
from feeder.counter import Rate
from feeder.message import LIVE, STALE, STATE_NAMES, SYNCING
from feeder.screen import Column, size_text, table, time_text

MIN_RATE_NS = 250 * clock.MILLISECOND         # figures of other processes come by jerks: no rates over less
STATES = [STATE_NAMES[state] for state in (LIVE, SYNCING, STALE)]
VENUE_COLUMNS = [Column(*each) for each in (
    ("venue", "<", 0), ("up", ">", 1), ("instruments", ">", 5), ("updates/s", ">", 2), ("live", ">", 0),
    ("syncing", ">", 3), ("stale", ">", 1), ("gaps", ">", 2), ("resyncs", ">", 4), ("unreadable", ">", 6))]
INSTRUMENT_COLUMNS = [Column(*each) for each in (
    ("venue", "<", 2), ("symbol", "<", 0), ("state", "<", 0), ("best bid", ">", 1), ("best ask", ">", 1),
    ("events", ">", 3), ("trades", ">", 4), ("gaps", ">", 5))]


def added(one, other):
    """Add two figures: numbers and lists by +, dicts by key; of two texts, the first that says something."""
    if isinstance(one, dict):
        return {key: added(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
                for key in {**one, **other}}
    return one or other if isinstance(one, str) else one + other


class Status:
    """Shows one run. Args: config; instrument_count: rows of the screen's table in all."""

    def __init__(self, config):
        self.config = config
        self.instrument_count = sum(len(venue.symbols) for venue in config.venues)
        self.started_ns = clock.steady_ns()
        self.rates = {}
        self.ever_live = False
        self.output = self.input = self.processes = None       # the last figures

    def seconds(self):
        return (clock.steady_ns() - self.started_ns) / clock.SECOND

    def update(self, output, input, processes):
        """Args: figures of the Output, of all Inputs added up, and {name: Vitals' figures}, the publishing one first."""
        self.output, self.input, self.processes = output, input, processes
        for name, text in output["faults"].items():
            row = input["venues"][name]["row"] if name in input["venues"] else {}
            row["last_error"] = row.get("last_error") or text
        now_ns = clock.steady_ns()
        if not self.rates or now_ns - self.rates["packets"].at_ns >= MIN_RATE_NS:
            self.update_rates(now_ns)
        self.ever_live |= self.states()["live"] > 0

    def update_rates(self, now_ns):
        output, input = self.output, self.input
        totals = {"packets": output["packets"], "bytes": output["bytes"],
                  **{name: venue["messages"] for name, venue in input["venues"].items()}}
        for name, total in totals.items():
            rate = self.rates.setdefault(name, Rate(self.started_ns))
            if total < rate.total:                   # the process that counts was started anew
                rate.total = total
            rate.update(now_ns, total)

    def states(self):
        """Return {state: how many books}."""
        return {state: sum(counts[state] for counts in self.output["states"].values()) for state in STATES}

    def figures(self):
        """Return what both kinds of status tell, as texts by name."""
        recent = self.output["recent_ns"]
        return {"seconds": f"{self.seconds():,.0f} s",
                "latency": (f"p50 {time_text(recent['p50'])}, p99 {time_text(recent['p99'])}, "
                            f"max {time_text(recent['max'])}" if recent["max"] else "none yet"),
                "packets": f"{self.rates['packets'].per_second:,.0f} packets/s",
                "memory": size_text(self.sum("memory_bytes")), "brief": next(iter(self.processes.values()))["brief"],
                "not_sent": self.output["not_sent"] + self.output["send_errors"]}

    def sum(self, key):
        return sum(process[key] for process in self.processes.values())

    def line(self):
        """Return the status for a log-like output."""
        figures = self.figures()
        venues = self.input["venues"]
        counted = ", ".join(f"{count:,} {state}" for state, count in self.states().items())
        return (f"{figures['seconds']}: {sum(self.rates[name].per_second for name in venues):,.0f} updates/s, "
                f"{figures['packets']}; books {counted}; gaps {sum(venue['gaps'] for venue in venues.values())}; "
                f"latency {figures['latency']}; memory {figures['memory']}; {figures['brief']}"
                + (f"; NOT SENT {figures['not_sent']:,}" if figures["not_sent"] else "")
                + "".join(f"; {text}" for text in self.faults()))

    def faults(self):
        """Return what does not work beside the channels themselves, as sentences' beginnings; the screen and line show them."""
        output = self.output
        lost = sum(each["not_sent"] + each["send_errors"] for each in output["fan_out"])
        looped = output["snapshot_loop"]
        unsent = looped["not_sent"] + looped["send_errors"] if looped else 0
        return [text for text in (
            f"FAN-OUT NOT SENT {lost:,}" if lost else "", f"SNAPSHOTS NOT SENT {unsent:,}" if unsent else "",
            *(f"NO {name.upper()}: {output[name]['error']}" for name in ("retransmission", "tap")
              if output[name] and output[name]["error"])) if text]

    def distribution(self):
        """Return the lines of the screen about what leaves besides the first channel's packets."""
        output = self.output
        channels, looped, again, tap = (output[key] for key in ("channels", "snapshot_loop", "retransmission", "tap"))
        lines = [f"channel {each['channel']:<4} {each['endpoint']}: {each['instruments']:,} instruments, "
                 f"{each['packets']:,} packets, not sent {each['not_sent'] + each['send_errors']:,}"
                 for each in channels] if len(channels) > 1 else []
        lines += [f"also to      {each['endpoint']}: {each['packets']:,} packets, not sent "
                  f"{each['not_sent'] + each['send_errors']:,}" for each in output["fan_out"]]
        if looped:
            lines.append(f"snapshots    at port {self.config.output.snapshot_port}: {looped['rounds']:,} rounds, the last one in "
                         f"{time_text(looped['round_ns'])}")
        if again:
            lines.append(f"missed       asked {again['requests']:,}, sent again {again['packets']:,} packets, not kept "
                         f"{again['unavailable']:,}, too much {again['busy']:,}, from strangers {again['other_networks']:,}")
        if tap:
            lines.append(f"tap          {tap['name']}: {tap['records']:,} datagrams, {tap['readers']} readers")
        return lines + [f"             {text}" for text in self.faults()]

    def screen(self, size, more=()):
        """Return the lines of the status for a terminal of that size; `more` are lines of the caller's."""
        figures = self.figures()
        output = self.config.output
        lines = [
            f"feeder run   {self.config.source}   {figures['seconds']}   Ctrl-C ends",
            f"output       {output.group}:{output.port} on {output.interface or 'any interface'}: "
            f"{figures['packets']}, {size_text(self.rates['bytes'].per_second)}/s, not sent {figures['not_sent']:,}",
            *self.distribution(),
            f"latency      socket to datagram: {figures['latency']}",
            f"memory       {figures['memory']}" + (f"   log {logs.path()}" if logs.path() else ""), *more]
        for name, process in self.processes.items():
            lines.append(f"{name:<12} {process['status']}")
            if process["wanting"]:
                lines.append(f"             not as asked, the log tells why: {process['wanting']}")
        lines.append("")
        venues = self.input["venues"]
        lines += table(VENUE_COLUMNS, [self.venue_cells(name, venue) for name, venue in venues.items()], size.columns)
        lines += [f"last fault   {name}: {venue['row']['last_error']}" for name, venue in venues.items()
                  if venue["row"]["last_error"]]
        lines.append("")
        gaps = self.input["gaps"]
        rows = [[*texts, f"{events:,}", f"{trades:,}", f"{gaps.get(str(number), 0):,}"]
                for number, (*texts, events, trades) in enumerate(self.output["entries"])]
        lines += table(INSTRUMENT_COLUMNS, rows, size.columns)
        return lines + [""] * (self.instrument_count - len(rows))        # Screen counts what did not fit

    def venue_cells(self, name, venue):
        row = venue["row"]
        states = self.output["states"].get(name, dict.fromkeys(STATES, 0))
        return [name, f"{row['connected']}/{row['lines']}", str(venue["instruments"]),
                f"{self.rates[name].per_second:,.0f}", *(f"{states[state]:,}" for state in STATES),
                f"{venue['gaps']:,}", f"{venue['resyncs']:,}", f"{row['bad_messages']:,}"]

    def report(self, output, input, processes):
        """Return the report of the run as a JSON-ready dict, from the reports of what update() takes figures of."""
        self.update(output, input, processes)
        first = next(iter(processes.values()))
        seconds = self.seconds()
        rows = [{**row, **input["links"].get(number, {})} for number, row in output["instruments"].items()]
        venues = input["venues"]
        messages = sum(venue["messages"] for venue in venues.values())
        return {
            "source": self.config.source, "session": output["session"], "seconds": round(seconds, 3),
            "messages": messages, "messages_per_second": round(messages / seconds),
            "packets": output["packets"], "packets_per_second": round(output["packets"] / seconds),
            "bytes": output["bytes"], "not_sent": output["not_sent"], "send_errors": output["send_errors"],
            "bursts": output["bursts"], "burst_way": output["burst_way"],
            "send_buffer_bytes": output["send_buffer_bytes"], "published_messages": output["published_messages"],
            **{key: output[key] for key in ("is_signed", "channels", "fan_out", "snapshot_loop", "retransmission", "tap")},
            "books": self.states(), "gaps": sum(row.get("gaps", 0) for row in rows),
            "resyncs": sum(row.get("resyncs", 0) for row in rows), "latency_ns": output["latency_ns"],
            "memory_bytes": self.sum("memory_bytes"), "measures": first["measures"], "usage": first["usage"],
            "internal_errors": self.sum("internal_errors"), "log_lines_lost": self.sum("log_lines_lost"),
            "venues": [venue["row"] for venue in venues.values()], "decoders": input["decoders"], "instruments": rows}
