"""Results as JSON, as tables, and as parts of a document."""

import json
import pathlib
import re

from harness.measure import Summary, paired
from harness.row import Bar, Row

DEFAULT_UNITS = {
    "requests": ("", 1.0),"seconds": ("ms", 1e3), "cpu": ("ms", 1e3)}


def save(file: pathlib.Path, results: dict) -> None:
    """Writes all results, a line for each row."""
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(results["rows"].items()))
    file.write_text(f'{{"peers": {json.dumps(results.get("peers", {}))}, "rows": {{\n{rows}\n}}}}\n')


def load(file: pathlib.Path) -> dict:
    """Reads the results of an earlier run, or starts new ones."""
    return json.loads(file.read_text()) if file.exists() else {"rows": {}}


def values(result: dict, case: str, label: str, metric: str = "seconds") -> list[float]:
    """Returns a sample, or nothing where it was not measured."""
    samples = result["cases"].get(case, {}).get(label, [])
    return [sample[metric] for sample in samples if metric in sample]


def unit_of(row: type[Row], metric: str) -> tuple[str, float]:
    """Returns unit and factor of a metric."""
    return row.units.get(metric) or DEFAULT_UNITS[metric]


def number(value: float) -> str:
    """Three digits that matter."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.095 or value == 0 else f"{value:.2g}"


def judged(row: type[Row], result: dict) -> list[dict]:
    """Compares a row with its bars."""
    verdicts = []
    for bar in row.bars:
        for case in bar.cases or tuple(result["cases"]):
            for label in result["cases"].get(case, {}):
                if label != bar.variant and not re.fullmatch(re.escape(bar.variant) + r" (dev|uring)", label):
                    continue
                if summary := _compared(bar, result, case, label):
                    verdicts.append(_verdict(row, result, bar, case, label, summary))
    return verdicts


def _compared(bar: Bar, result: dict, case: str, label: str) -> Summary | None:
    ours = values(result, case, label, bar.metric)
    if bar.kind == "most":
        return Summary.of(ours) if ours else None
    theirs = values(result, case, _rival(bar, result["cases"][case], label), bar.metric)
    return paired(ours, theirs, bar.kind == "difference") if ours and theirs else None


def _rival(bar: Bar, measured: dict, label: str) -> str:
    """Returns what to compare with: what is served over the same transport, where both are served."""
    served = bar.against + label.removeprefix(bar.variant)
    return served if served in measured else bar.against


def _verdict(row: type[Row], result: dict, bar: Bar, case: str, label: str, summary: Summary) -> dict:
    unit, factor = ("×", 1.0) if bar.kind == "ratio" else unit_of(row, bar.metric)
    rival = _rival(bar, result["cases"][case], label) if bar.against else ""
    against = f" / {rival}" if rival else ""
    if bar.kind == "difference":
        against = f" − {rival}"
    return {
        "row": row.name,
        "case": case,
        "what": f"{label}{against}" + (f" ({bar.metric})" if bar.metric not in ("seconds", "now") else ""),
        "limit": bar.limit * factor,
        "unit": unit,
        "median": summary.median * factor,
        "low": summary.low * factor,
        "high": summary.high * factor,
        "met": summary.median <= bar.limit,
    }


def bars_table(results: dict) -> str:
    """Returns what was promised and what was measured."""
    lines = ["| row | case | compared | bar | median | quartiles | |", "|---|---|---|---:|---:|---:|---|"]
    for name, row in Row.known.items():
        verdicts = judged(row, results["rows"][name]) if name in results["rows"] else []
        if row.strict and all(verdict["met"] for verdict in verdicts):
            # Each of these must hold, and its own table has the figures.
            if verdicts:
                lines.append(f"| `{name}` | all {len(verdicts)} | | | | | met |")
            continue
        for verdict in verdicts:
            unit = "" if verdict["unit"] == "×" else f" {verdict['unit']}"
            spread = f"{number(verdict['low'])} – {number(verdict['high'])}"
            met = "met" if verdict["met"] else "**missed**"
            lines.append(
                f"| `{name}` | {verdict['case']} | {verdict['what'].replace('|', chr(92) + '|')} "
                f"| ≤ {number(verdict['limit'])}{unit} | {number(verdict['median'])}{unit} | {spread} | {met} |"
            )
    return "\n".join(lines)


def row_table(row: type[Row], result: dict) -> str:
    """Returns medians of everything that a row measured, with the number of rounds."""
    cases = list(result["cases"])
    labels = list(dict.fromkeys(label for case in cases for label in result["cases"][case]))
    metrics = [metric for metric in _metrics(result) if metric != "whole"]
    tables = []
    for metric in metrics:
        unit, factor = unit_of(row, metric)
        what = {"seconds": "wall time", "cpu": "user and system time"}.get(metric, metric)
        head = [f"{what}, {unit}", *(label.replace("|", "\\|") for label in labels)]
        lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * len(labels)]
        for case in cases:
            cells = []
            for label in labels:
                sample = values(result, case, label, metric)
                cells.append(number(Summary.of(sample).median * factor) if sample else "")
            lines.append(f"| {case or row.name} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _metrics(result: dict) -> list[str]:
    samples = (sample for case in result["cases"].values() for of in case.values() for sample in of)
    return list(dict.fromkeys(metric for sample in samples for metric in sample))


def machine_text(results: dict) -> str:
    """Returns where and when the rows were measured."""
    seen: dict[str, list[str]] = {}
    for name, result in results["rows"].items():
        cases: dict[str, list[str]] = {}
        for case, facts in result["machines"].items():
            text = (
                f"{facts['cpus']} CPUs ({facts['processor']}{', virtual' if facts['virtual'] else ''}), "
                f"{facts['memory_gib']} GiB, Linux {facts['kernel']}, commit {facts['commit']}, {facts['date'][:10]}"
            )
            cases.setdefault(text, []).append(case)
        for text, of in cases.items():
            seen.setdefault(text, []).append(f"`{name}`" if len(cases) == 1 else f"`{name}` ({', '.join(of)})")
    if len(seen) == 1:
        return f"Measured on {next(iter(seen))}."
    return "\n".join(f"- {', '.join(names)}: {text}" for text, names in seen.items())


def peers_text(results: dict) -> str:
    """Returns the versions of the peers."""
    return ", ".join(f"{name} {said}" for name, said in results.get("peers", {}).items())


def update(document: pathlib.Path, results: dict) -> None:
    """Puts tables between the markers `<!-- bench: NAME -->` and `<!-- bench: end -->` of a document."""

    def made(found: re.Match) -> str:
        name = found.group(1)
        if name in ("bars", "machine", "peers"):
            part = {"bars": bars_table, "machine": machine_text, "peers": peers_text}[name](results)
        elif name in results["rows"]:
            part = row_table(Row.known[name], results["rows"][name])
        else:
            return found.group(0)
        return f"<!-- bench: {name} -->\n{part}\n<!-- bench: end -->"

    text = document.read_text()
    new = re.sub(r"<!-- bench: ([\w-]+) -->\n(?:.*?\n)??<!-- bench: end -->", made, text, flags=re.DOTALL)
    if new != text:
        document.write_text(new)
