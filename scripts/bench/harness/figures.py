"""Figures as SVG: grouped bars and lines, on linear or logarithmic axes, readable in light and in dark."""

import dataclasses
import html
import math
import pathlib

from harness.measure import Summary, paired
from harness.report import number, values

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 46, 56
COLOURS = ["#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#f08c00", "#0c8599", "#868e96", "#c2255c", "#5c940d"]
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222; } .title { font-size: 15px; font-weight: 600; }
.axis { stroke: #444; } .grid { stroke: #ccc; stroke-width: .6; } .back { fill: #fff; } .limit { stroke: #c00; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
text { fill: #ddd; } .axis { stroke: #aaa; } .grid { stroke: #444; } .back { fill: #16181c; } .limit { stroke: #ff6b6b; } }
"""


@dataclasses.dataclass
class Chart:
    """What a figure shows: a value for every category of every series, None where there is none."""

    title: str
    unit: str
    categories: list[str]
    series: dict[str, list[float | None]]
    axis: str = ""
    logarithmic: bool = False
    lines: bool = False
    limit: float | None = None

    def svg(self) -> str:
        """Draws it."""
        numbers = [value for sample in self.series.values() for value in sample if value]
        scale = Scale.of([*numbers, *([self.limit] if self.limit else [])], self.logarithmic)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>",
            f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
            _text(LEFT, 22, self.title, kind="title"),
            _text(14, TOP + 150, self.unit, turned=True),
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, self.axis, anchor="middle"),
        ]
        for tick in scale.ticks():
            y = scale.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(LEFT - 6, y + 4, number(tick), anchor="end"))
        slot = (WIDTH - LEFT - RIGHT) / len(self.categories)
        for at, category in enumerate(self.categories):
            parts.append(_text(LEFT + slot * (at + 0.5), HEIGHT - BOTTOM + 18, category, anchor="middle"))
        parts += self._lines(scale, slot) if self.lines else self._bars(scale, slot)
        if self.limit:
            y = scale.y(self.limit)
            parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        )
        for place, name in enumerate(self.series):
            y = TOP + 18 * place
            colour = COLOURS[place % len(COLOURS)]
            parts.append(f'<rect x="{WIDTH - RIGHT + 14}" y="{y}" width="12" height="12" fill="{colour}"/>')
            parts.append(_text(WIDTH - RIGHT + 32, y + 10, name))
        return "\n".join([*parts, "</svg>", ""])

    def _bars(self, scale: "Scale", slot: float) -> list[str]:
        parts = []
        width = slot * 0.8 / len(self.series)
        for place, (name, sample) in enumerate(self.series.items()):
            for at, value in enumerate(sample):
                if not value:
                    continue
                x, y = LEFT + slot * (at + 0.1) + width * place, scale.y(value)
                colour = COLOURS[place % len(COLOURS)]
                tip = html.escape(f"{name}, {self.categories[at]}: {number(value)} {self.unit}")
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.92:.1f}" '
                    f'height="{max(HEIGHT - BOTTOM - y, 1):.1f}" fill="{colour}"><title>{tip}</title></rect>'
                )
        return parts

    def _lines(self, scale: "Scale", slot: float) -> list[str]:
        parts = []
        for place, (name, sample) in enumerate(self.series.items()):
            colour = COLOURS[place % len(COLOURS)]
            points = [(LEFT + slot * (at + 0.5), scale.y(value), value) for at, value in enumerate(sample) if value]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for x, y, value in points:
                tip = html.escape(f"{name}: {number(value)} {self.unit}")
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{tip}</title></circle>')
        return parts


@dataclasses.dataclass
class Scale:
    """Where a value is drawn."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, numbers: list[float], logarithmic: bool) -> "Scale":
        """Takes in all numbers, to the next round one."""
        if logarithmic:
            return cls(10 ** math.floor(math.log10(min(numbers))), 10 ** math.ceil(math.log10(max(numbers))), True)
        step = _step(max(numbers))
        return cls(0, step * math.ceil(max(numbers) / step), False)

    def ticks(self) -> list[float]:
        """Returns the values that have a line."""
        if self.logarithmic:
            return [10.0**power for power in range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)]
        step = _step(self.high)
        return [step * count for count in range(round(self.high / step) + 1)]

    def y(self, value: float) -> float:
        """Returns the height of a value."""
        room = HEIGHT - TOP - BOTTOM
        if self.logarithmic:
            share = math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        else:
            share = value / self.high
        return HEIGHT - BOTTOM - room * share


def _step(high: float) -> float:
    power = 10 ** math.floor(math.log10(high))
    return next(power * part for part in (0.2, 0.5, 1.0, 2.0) if high / (power * part) <= 6)


def _text(x: float, y: float, text: str, anchor="start", kind="", turned=False) -> str:
    turn = f' transform="rotate(-90 {x} {y})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}"{turn}>{html.escape(text)}</text>'


def _medians(result: dict, label: str, cases: list[str], metric: str = "seconds", factor: float = 1e3):
    samples = (values(result, case, label, metric) for case in cases)
    return [Summary.of(sample).median * factor if sample else None for sample in samples]


def _labels(result: dict) -> list[str]:
    return list(dict.fromkeys(label for case in result["cases"].values() for label in case))


def _short(case: str) -> str:
    """'50000x4096' as '50 k × 4 KiB'."""
    count, _, size = case.partition("x")
    text = f"{int(count) // 1000} k" if int(count) >= 1000 else count
    if not size:
        return text
    size_bytes = int(size)
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{text} × {size_bytes // unit} {name}"
    return f"{text} × {size_bytes} B"


def _by_size(row: str, title: str, axis: str, metric="seconds", unit="ms", factor=1e3, leave_out=()):
    def chart(rows: dict) -> Chart | None:
        result = rows.get(row)
        if result is None:
            return None
        cases = list(result["cases"])
        series = {
            label: sample
            for label in _labels(result)
            if label not in leave_out and any(sample := _medians(result, label, cases, metric, factor))
        }
        return Chart(title, unit, [_short(case) for case in cases], series, axis, logarithmic=True, lines=True)

    return chart


def _views(rows: dict) -> Chart | None:
    names = {
        "build-c": "C -O0", "build-cargo": "cargo", "build-vite": "Vite + TS", "npm-ci": "npm ci",
        "node-reads": "node reads", "opens": "opens",
    }
    present = [name for name in names if name in rows]
    if not present:
        return None
    labels = [label for label in _labels(rows[present[0]]) if label.startswith("view") and "stored" not in label]
    series = {"bare": [1.0] * len(present)}
    for label in labels:
        series[label] = []
        for name in present:
            case = next(iter(rows[name]["cases"]))
            ours, theirs = (values(rows[name], case, of) for of in (label, "bare"))
            series[label].append(paired(ours, theirs).median if ours and theirs else None)
    return Chart("Work in a view, against the bare directory", "times bare", [names[n] for n in present], series)


def _trees(rows: dict) -> Chart | None:
    result = rows.get("trees")
    if result is None:
        return None
    cases = list(result["cases"])
    series = {label: _medians(result, label, cases) for label in _labels(result)}
    return Chart("Trees of 20,000 small files", "ms", cases, series, logarithmic=True)


FIGURES = {
    "views": _views,
    "trees": _trees,
    "hits": _by_size("hit", "A hit, by size of the outputs", "files × size of each"),
    "no-op": _by_size("no-op", "Nothing changed, by recorded inputs", "recorded inputs"),
    "graph": _by_size("graph", "A graph of tasks, all hits", "tasks"),
    "view-curve": _by_size("view-curve", "cp -r in a view, by files", "files"),
    "layers": _by_size("layers", "With many layers attached", "layers of 1,000 files"),
    "memory": _by_size("memory", "Memory of vout-mountd, by files in a layer", "files", "now", "MiB", 1.0),
    "store": _by_size(
        "memory", "Size of the archive, by files", "files of 64 bytes", "archive", "MiB", 2**-20, ("listed", "packed")
    ),
}


def draw(results: dict, place: pathlib.Path) -> None:
    """Draws every figure for which there are results."""
    place.mkdir(parents=True, exist_ok=True)
    for name, chart_of in FIGURES.items():
        chart = chart_of(results["rows"])
        if chart is not None:
            (place / f"{name}.svg").write_text(chart.svg())
