"""The comparison of compare_benchmarks.py as one page: HTML, CSS and SVG in a single file, for any browser, offline.

In:   two Sides with their Points, the Lines with the verdicts, and notes.   Out: text.

No script, no font, no image from elsewhere. Colours are CSS variables that follow the reader's light or dark setting.
The page is well-formed XML too, so that a parser can check it. Text that came from a file goes through `escape`.

Base is grey, new is blue, everywhere. Quantities of different units share a plot only as a share of base; what shares a
unit has an axis in it. Latencies are on log axes, as a tail is many times its median. The band around a curve is the
range over the runs.
"""

import html
import math
import re

from benchmark_results import KINDS, PERCENTILES, count_text
from compare_benchmarks import (BETTER, NOT_COMPARABLE, WORSE, allowed_text, change_text, keys_of, reasons, spread_of,
                                summary, unlike, value_text)

WIDTH, NAMES, VALUES = 1060, 330, 250       # of a wide plot; of its names to the left and values to the right
SMALL_WIDTH, SMALL_HEIGHT = 520, 270        # of one among many
NAME_CHARACTERS = 44
DOT = {"base": 5, "new": 3.5}                # base is drawn first and wider, so that it shows where both agree
KIND = {kind.key: kind for kind in KINDS}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --rule: #dfe3e9; --ground: #ffffff; --card: #f6f7f9;
  --base: #98a1af; --new: #2463d6; --worse: #b93815; --better: #14783a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9ba6b5; --rule: #2d3541; --ground: #12161c;
  --card: #1a2028; --base: #77828f; --new: #6ea6ff; --worse: #ff9166; --better: #5fce86; } }
body { margin: 0 auto; max-width: 1060px; padding: 40px 24px 80px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; line-height: 1.25; font-weight: 650; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; font-weight: 650; margin: 52px 0 2px; }
p { margin: 2px 0 10px; max-width: 92ch; } .soft { color: var(--soft); }
.result { font-size: 17px; margin-bottom: 20px; } .note { border-left: 3px solid var(--worse); padding-left: 12px; }
.worse { color: var(--worse); fill: var(--worse); font-weight: 600; }
.better { color: var(--better); fill: var(--better); }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--rule); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--soft); } th.nowrap { width: 1%; padding-right: 24px; }
.n { text-align: right; white-space: nowrap; } .nowrap { white-space: nowrap; }
.few { display: grid; grid-template-columns: 1fr 1fr; gap: 28px 20px; }
@media (max-width: 800px) { .few { grid-template-columns: 1fr; }
  .wide { overflow-x: auto; } .wide svg { min-width: 760px; } }
figure { margin: 0; } figcaption { font-size: 13px; font-weight: 600; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; font-size: 12px; font-variant-numeric: tabular-nums; }
svg text { fill: var(--ink); }
svg text.soft { fill: var(--soft); } svg text.worse { fill: var(--worse); } svg text.better { fill: var(--better); }
.grid { stroke: var(--rule); } .goal { stroke: var(--better); stroke-width: 2; }
.fill-base { fill: var(--base); } .fill-new { fill: var(--new); }
.stroke-base { fill: none; stroke: var(--base); stroke-width: 4.5; }
.stroke-new { fill: none; stroke: var(--new); stroke-width: 2; }
.whisker { stroke-width: 2; } .stroke-base.dashed { stroke-width: 3; } path.thin.thin { stroke-width: 1.25; }
.dashed { stroke-dasharray: 5 4; } .dotted { stroke-dasharray: 1.5 3.5; }
.band { opacity: 0.16; stroke: none; }
.legend { font-size: 13px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 2px 22px; max-width: none;
  margin: 6px 0 12px; }
.legend svg { display: inline-block; width: 26px; height: 10px; margin-right: 7px; }
"""


def escape(text):
    return html.escape(str(text), quote=True)


def page(base, new, lines, warnings):
    verdicts = {(line.key, line.kind.key): line for line in lines}
    pairs = [(key, base.points.get(key), new.points.get(key)) for key in keys_of(base, new)]
    plots = Plots(base, new, pairs, verdicts)
    title = f"feeder benchmarks: {base.name} → {new.name}"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="result">{escape(summary(lines))}</p>', heads(base, new),
            *(f'<p class="note">{escape(warning)}</p>' for warning in warnings), *plots.sections(), figures(lines)]
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"/>\n<title>{escape(title)}</title>\n'
            f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n")


def heads(base, new):
    rows = "".join(f'<tr><th class="nowrap">{escape(side.label)}</th><td>{escape(side.describe())}</td></tr>'
                   for side in (base, new))
    return f"<table>{rows}</table>"


def figures(lines):
    rows, last = [], None
    for line in lines:
        name, last = "" if line.name == last else line.name, line.name
        rows.append(f'<tr><td>{escape(name)}</td><td class="nowrap">{escape(line.kind.label)}</td>'
                    f'<td class="n">{value_text(line, line.base)}</td><td class="n">{value_text(line, line.new)}</td>'
                    f'<td class="n">{change_text(line)}</td><td class="n">{allowed_text(line)}</td>'
                    f'<td class="nowrap {tone(line)}">{line.verdict}</td></tr>')
    why = "".join(f'<p class="soft">{escape(text)}</p>' for text in reasons(lines))
    return (f'<h2>All figures</h2><p class="soft">A change counts where it exceeds the spread of both sides.</p>'
            f'<table><tr><th>figure</th><th></th><th class="n">base</th><th class="n">new</th><th class="n">change</th>'
            f'<th class="n">spread</th><th>verdict</th></tr>{"".join(rows)}</table>{why}')


def tone(line):
    return {WORSE: "worse", BETTER: "better"}.get(line.verdict, "soft") if line else "soft"


class Plots:
    """`pairs` [(key, base Point or None, new Point or None)], `verdicts` {(key, Kind.key): Line}."""

    def __init__(self, base, new, pairs, verdicts):
        self.base, self.new, self.pairs, self.verdicts = base, new, pairs, verdicts

    def sections(self):
        """Yield what there is something to show for."""
        parts = [
            ("Time ÷ reference", "The main figure: our time by that of the reference, timed in turn with it. Left is "
             "better; whiskers are the spread.", self.ratios()),
            ("Throughput", "Units a second, as a share of base. Longer is better.",
             self.bars("per_second", relative=True)),
            ("Latency over rate", "As the rate offered grows, log scale. Lower is better; the knee is where it turns "
             "up." + self.bands(), self.rates()),
            ("Latency", "Single messages, percentile by percentile, log scale. Lower is better." + self.bands(),
             self.percentiles()),
            ("CPU time", "Of one unit, as a share of base; of start, wall time. Shorter is better.",
             self.bars("cpu_ns", relative=True, get=lambda point: point.cpu_ns)),
            ("CPU share", "Of one core, at the rate offered. Shorter is better.", self.bars("cpu_share")),
            ("Memory", "Shorter is better.", self.bars("memory_bytes")),
            ("Page faults, minor", "Shorter is better; none is the aim once it runs.", self.bars("minor_faults")),
            ("Page faults, major", "Each waits for a disk. None is the aim.", self.bars("major_faults")),
            ("Messages lost", "None is the aim.", self.bars("lost")),
        ]
        for title, how, (legend, drawn) in parts:
            if drawn:
                yield f'<h2>{title}</h2><p class="soft">{how}</p>{legend}{drawn}'

    def bands(self):
        several = any(point.runs > 1 for side in (self.base, self.new) for point in side.points.values())
        return " Bands are the range over the runs." if several else ""

    def legend(self, *more):
        """Tell base from new; `more` is [(drawing in 26 x 10, text)]."""
        keys = [('<rect class="fill-base" width="26" height="10" rx="2"/>', self.base.label),
                ('<rect class="fill-new" width="26" height="10" rx="2"/>', self.new.label), *more]
        return '<p class="legend">' + "".join(
            f'<span><svg viewBox="0 0 26 10">{drawing}</svg>{escape(text)}</span>' for drawing, text in keys) + "</p>"

    def told(self, key, kind, pair, y):
        """A row's name to the left, its values (or None) and their change to the right."""
        line, points = self.verdicts.get((key, kind.key)), (self.base.points.get(key), self.new.points.get(key))
        texts = ["–" if value is None else kind.text(value) for value in pair]
        change = change_text(line) if line else ""
        if not line and pair[0] and pair[1] is not None:
            change = f"{pair[1] / pair[0] - 1:+.1%}"
        if None not in pair and unlike(kind, *points, self.base.head, self.new.head):
            change = NOT_COMPARABLE
        return [name_of(points[0] or points[1], y), text(WIDTH - VALUES + 14, y, " → ".join(texts)),
                text(WIDTH, y, change, tone(line), "end")]

    # -- wide plots: a row a scenario

    def ratios(self):
        rows = [(key, base, new) for key, base, new in self.pairs
                if any(point and point.values.get("ratio") for point in (base, new))]
        if not rows:
            return "", ""
        kind, ends = KIND["ratio"], []
        for _, *points in rows:
            for point in filter(None, points):
                ends += [end for end in reach(point, kind) if end > 0]
        scale = LogScale(min(ends), max(ends), NAMES, WIDTH - VALUES)
        bottom, drawn = 34 * len(rows) + 8, []
        for value in scale.ticks:
            drawn += grid_line(scale(value), bottom, f"{value:g}")
        for at, (key, *points) in enumerate(rows):
            y = 34 * at + 24
            drawn += self.told(key, kind, [point and point.values.get("ratio") for point in points], y + 4)
            for point, side, step in zip(points, ("base", "new"), (-5, 5)):
                if not point or not point.values.get("ratio"):
                    continue
                low, value, high = (scale(max(each, scale.low)) for each in reach(point, kind))
                drawn.append(f'<path class="stroke-{side} whisker" d="M{low:.1f} {y + step}H{high:.1f}"/>'
                             f'<circle class="fill-{side}" cx="{value:.1f}" cy="{y + step}" r="4.5"/>')
            goal = next((point.goal.get("reach") for point in reversed(points) if point and point.goal), None)
            if goal and scale.low <= goal <= scale.high:
                drawn.append(f'<path class="goal" d="M{scale(goal):.1f} {y - 12}V{y + 12}"/>')
        drawn.append(text((NAMES + WIDTH - VALUES) / 2, bottom + 38, "time ÷ time of the reference, log scale", "soft",
                          "middle"))
        more = [('<path class="goal" d="M13 0V10"/>', "goal to reach")] if any("goal" in each for each in drawn) else []
        return self.legend(*more), wide(bottom + 46, drawn, "Time by that of the reference")

    def bars(self, name, relative=False, get=None):
        """`get` returns the value of a Point, by default its figure of that name."""
        kind, get = KIND[name], get or (lambda point: point.values.get(name))
        rows = [(key, [get(point) if point else None for point in points]) for key, *points in self.pairs]
        rows = [(key, pair) for key, pair in rows if pair != [None, None]]
        values = [pair for _, pair in rows]
        if not any(map(any, values)):
            return "", ""                                    # none anywhere is told by the table
        units = [next(value for value in pair if value) if relative and any(pair) else 1 for pair in values]
        longest = max(value / unit for pair, unit in zip(values, units) for value in pair if value is not None)
        scale = LinearScale(longest, NAMES, WIDTH - VALUES, 1 if kind.text is count_text and not relative else 0)
        bottom, drawn = 34 * len(rows) + 8, []
        for value in scale.ticks:
            drawn += grid_line(scale(value), bottom, f"{value:.0%}" if relative else round_text(kind, value))
        for at, ((key, pair), unit) in enumerate(zip(rows, units)):
            y = 34 * at + 14
            drawn += self.told(key, kind, pair, y + 14)
            for value, side, step in zip(pair, ("base", "new"), (0, 11)):
                if value:
                    drawn.append(f'<rect class="fill-{side}" x="{NAMES}" y="{y + step}" height="9" rx="2" '
                                 f'width="{max(1.5, scale(value / unit) - NAMES):.1f}"/>')
        return self.legend(), wide(bottom + 28, drawn, kind.label)

    # -- small plots: one a scenario

    def percentiles(self):
        plots, with_reference = [], False
        for _, *points in self.pairs:
            curves = []
            for point, side in zip(points, ("base", "new")):
                if point:
                    curves += [(side, "", point.latency), (side, " thin dashed", point.reference_latency)]
            curves = [curve for curve in curves if len(curve[2]) > 1]
            if not any(not style for _, style, _ in curves):
                continue
            with_reference = with_reference or any(style for _, style, _ in curves)
            ends = [value for _, _, latency in curves for triple in latency.values() for value in triple if value > 0]
            if not ends:
                continue
            scale = LogScale(min(ends), max(ends), SMALL_HEIGHT - 30, 12)
            step = (SMALL_WIDTH - 130) / (len(PERCENTILES) - 1)
            columns = {name: 96 + step * at for at, name in enumerate(PERCENTILES)}
            drawn = time_axis(scale)
            for name, x in columns.items():
                drawn.append(text(x, SMALL_HEIGHT - 8, name.replace("p999", "p99.9"), "soft", "middle"))
            for side, style, latency in curves:
                drawn += curve(side, style, [(columns[name], triple) for name, triple in latency.items()], scale)
            plots.append(small((points[0] or points[1]).name, drawn))
        more = [('<path class="stroke-base thin dashed" d="M0 5H26"/>', "reference, in the run of the same colour")]
        return self.legend(*(more if with_reference else [])), few(plots)

    def rates(self):
        groups = {}
        for (bench, scenario), *points in self.pairs:
            rate = (points[0] or points[1]).rate
            if rate is not None:
                groups.setdefault((bench, without_rate(scenario, rate)), []).append((rate, points))
        plots, with_reference = [], False
        for (bench, scenario), rows in groups.items():
            rows.sort(key=lambda row: row[0])
            curves = []
            for at, side in enumerate(("base", "new")):
                for style, percentile, name in (("", "p50", "latency"), (" dashed", "p99", "latency"),
                                                (" thin dotted", "p50", "reference_latency")):
                    dots = [(rate, getattr(points[at], name)[percentile]) for rate, points in rows
                            if points[at] and percentile in getattr(points[at], name)]
                    curves += [(side, style, dots)] if len(dots) > 1 else []
            ends = [value for *_, dots in curves for _, triple in dots for value in triple if value > 0]
            if not ends:
                continue
            with_reference = with_reference or any("dotted" in style for _, style, _ in curves)
            scale, top = LogScale(min(ends), max(ends), SMALL_HEIGHT - 48, 12), rows[-1][0]
            across = LinearScale(top, 70, SMALL_WIDTH - 24)
            drawn = time_axis(scale, SMALL_HEIGHT - 48)
            for value in across.ticks:
                drawn.append(text(across(value), SMALL_HEIGHT - 30, short_count(value), "soft", "middle"))
            drawn.append(text((70 + SMALL_WIDTH) / 2, SMALL_HEIGHT - 8, "messages a second offered", "soft", "middle"))
            for side, style, dots in curves:
                drawn += curve(side, style, [(across(rate), triple) for rate, triple in dots], scale)
            plots.append(small(": ".join(filter(None, (bench, scenario))), drawn))
        styles = [("", "p50"), (" dashed", "p99")] + [(" thin dotted", "p50 of the reference")] * with_reference
        keys = [(f'<path class="stroke-new{style}" d="M0 5H26"/>', name) for style, name in styles]
        return self.legend(*keys), few(plots)


def without_rate(scenario, rate):
    """The scenario without its own rate, so that those of all rates are one plot."""
    rest = re.sub(rf"(?<![\d,.])({rate:,.0f}|{rate:.0f})(?![\d,])( messages/s| a second)?", "", scenario)
    return rest.strip(" ,")


def round_text(kind, value):
    """A tick's value; its zeros behind the point would claim a precision."""
    return re.sub(r"\.0+(?=\D|$)", "", kind.text(value))


def short_count(value):
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"


def reach(point, kind):
    """Return (low, value, high) of a figure by its spread."""
    value = point.values[kind.key]
    half = (spread_of(point, kind) or 0) / 2
    return value - half, value, value + half


# -- scales ----------------------------------------------------------------------------------------------------


class LogScale:
    """From values to pixels. Its ends are ticks: 1, 2 and 5 of each power of ten, or powers alone if they are many."""

    def __init__(self, low, high, start, stop):
        steps = (1, 2, 5) if high / low < 400 else (1,)
        powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        ticks = [step * 10.0 ** power for power in powers for step in steps]
        self.low = max((tick for tick in ticks if tick <= low * 1.0001), default=low)
        self.high = min((tick for tick in ticks if tick >= high * 0.9999 and tick > self.low))
        self.ticks = [tick for tick in ticks if self.low <= tick <= self.high]
        self.start, self.factor = start, (stop - start) / math.log(self.high / self.low)

    def __call__(self, value):
        return self.start + math.log(max(value, self.low) / self.low) * self.factor


class LinearScale:
    """From 0 to `high`; some five ticks, round ones, `least` apart."""

    def __init__(self, high, start, stop, least=0):
        rough = high / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.9999) * power
        step = max(step, least)
        self.ticks = [step * at for at in range(math.ceil(high / step * 0.9999) + 1)]
        self.start, self.factor = start, (stop - start) / self.ticks[-1]

    def __call__(self, value):
        return self.start + value * self.factor


# -- drawing ---------------------------------------------------------------------------------------------------


def text(x, y, content, tone="", anchor="start"):
    return (f'<text x="{x:.1f}" y="{y:.1f}"' + (f' class="{tone}"' if tone else "")
            + (f' text-anchor="{anchor}"' if anchor != "start" else "") + f">{escape(content)}</text>")


def name_of(point, y):
    """A row's name, cut where it is too long; the whole of it shows under the pointer."""
    name = point.name
    if len(name) <= NAME_CHARACTERS:
        return text(NAMES - 16, y, name, "", "end")
    return f"<g><title>{escape(name)}</title>{text(NAMES - 16, y, name[:NAME_CHARACTERS - 1] + '…', '', 'end')}</g>"


def grid_line(x, bottom, label):
    return [f'<path class="grid" d="M{x:.1f} 4V{bottom}"/>', text(x, bottom + 18, label, "soft", "middle")]


def time_axis(scale, bottom=SMALL_HEIGHT - 30):
    drawn = []
    for value in scale.ticks:
        y = scale(value)
        drawn += [f'<path class="grid" d="M70 {y:.1f}H{SMALL_WIDTH}"/>',
                  text(62, y + 4, round_text(KIND["ns"], value), "soft", "end")]
    return drawn


def curve(side, style, dots, scale):
    """A line through the medians of `dots` [(x, (median, low, high))], and a band from low to high."""
    line = "L".join(f"{x:.1f} {scale(median):.1f}" for x, (median, _, _) in dots)
    drawn = [f'<path class="stroke-{side}{style}" d="M{line}"/>']
    if not style:
        if any(low != high for _, (_, low, high) in dots):
            upper = [f"{x:.1f} {scale(high):.1f}" for x, (_, _, high) in dots]
            lower = [f"{x:.1f} {scale(low):.1f}" for x, (_, low, _) in reversed(dots)]
            drawn.insert(0, f'<path class="fill-{side} band" d="M{"L".join(upper + lower)}Z"/>')
        drawn += [f'<circle class="fill-{side}" cx="{x:.1f}" cy="{scale(median):.1f}" r="{DOT[side]}"/>'
                  for x, (median, _, _) in dots]
    return drawn


def wide(height, drawn, label):
    return (f'<div class="wide"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
            + "".join(drawn) + "</svg></div>")


def small(name, drawn):
    name = escape(name)
    return (f'<figure><figcaption>{name}</figcaption><svg viewBox="0 0 {SMALL_WIDTH} {SMALL_HEIGHT}" role="img" '
            f'aria-label="{name}">{"".join(drawn)}</svg></figure>')


def few(plots):
    return f'<div class="few">{"".join(plots)}</div>' if plots else ""
