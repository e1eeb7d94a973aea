"""The command line of `scripts/bench/run`."""

import argparse
import os
import pathlib
import subprocess
import sys
import time

from harness import figures, machine, report, rows  # noqa: F401  (rows registers them)
from harness.lab import Lab, Options
from harness.measure import Failed, Summary
from harness.row import Row

WHOLE_SECONDS = 40 * 60
DOCUMENTS = ["docs/PERFORMANCE.md", "README.md"]


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench/run",
        description="Measures vout against bare directories and its peers, in interleaved pairs. Results go to "
        "target/bench/results.json; rows that are not run keep their earlier ones.",
        epilog="rows: " + ", ".join(Row.known),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to measure; everything by default")
    parser.add_argument("--rounds", type=int, help="runs of each variant; by default, each row's own number")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="time for all rows; 40 by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, 2 rounds: does it still work?")
    parser.add_argument("--heavy", action="store_true", help="adds sizes of 10 GiB and of a million files")
    parser.add_argument("--case", action="append", default=[], help="measures only this case of the rows; repeat for more; the others keep their results")
    parser.add_argument("--transport", action="append", default=[], help="VOUT_TRANSPORT; repeat to compare; by default, what each row is about")
    parser.add_argument("--disk", default="20G", help="size of the disk in memory; only what is used counts")
    parser.add_argument("--without-peers", action="store_true", help="installs nothing")
    parser.add_argument("--no-build", action="store_true", help="measures the release build that is there")
    parser.add_argument("--vout", type=lambda path: pathlib.Path(path).resolve(), help="measures this program instead; nothing is saved")
    parser.add_argument("--docs", action="store_true", help="then updates the tables and figures of docs/")
    parser.add_argument("--redraw", action="store_true", help="as --docs, from the results that are there")
    parser.add_argument("--list", action="store_true", help="prints the rows and what they measure")
    return parser.parse_args()


def main() -> int:
    """Measures, prints, saves."""
    options = arguments()
    if options.list:
        for name, row in Row.known.items():
            print(f"{name:12} {row.title}")
        return 0
    unknown = [name for name in options.rows if name not in Row.known]
    if unknown:
        print(f"bench: no such row: {', '.join(unknown)}; there are {', '.join(Row.known)}", file=sys.stderr)
        return 2
    os.chdir(machine.ROOT)
    file = machine.ROOT / "target" / "bench" / "results.json"
    # What the tables were made of is kept beside them, so that one row can be measured anew in another checkout.
    kept = machine.ROOT / "docs" / "figures" / "results.json"
    results = report.load(file if file.exists() else kept)
    failed = [] if options.redraw else run(options, results, file)
    print(report.bars_table(results))
    print(f"bench: all samples are in {file.relative_to(machine.ROOT)}", file=sys.stderr)
    if options.docs or options.redraw:
        report.save(kept, results)
        figures.draw(results, machine.ROOT / "docs" / "figures")
        for document in DOCUMENTS:
            report.update(machine.ROOT / document, results)
    for name, problem in failed:
        print(f"bench: {name} failed: {problem}", file=sys.stderr)
    return 1 if failed else 0


def run(options: argparse.Namespace, results: dict, file: pathlib.Path) -> list[tuple[str, str]]:
    """Measures the rows that were asked for; one that fails does not keep the others from running."""
    if not options.no_build and not options.vout:
        # Without it the numbers would be about last week.
        machine.build()
    rounds = options.rounds or (2 if options.quick else None)
    budget = (options.budget or WHOLE_SECONDS / 60) * 60
    lab_options = Options(rounds, budget, options.quick, options.heavy, options.transport)
    lab = Lab(lab_options, options.disk, install=not options.without_peers)
    lab.vout = options.vout or lab.vout
    failed = []
    try:
        results["peers"] = lab.peers.versions()
        names = options.rows or list(Row.known)
        # Rows that are named share the budget only among themselves.
        share = budget / (sum(Row.known[name].seconds for name in Row.known) if not options.rows else WHOLE_SECONDS)
        for name in names:
            try:
                row = Row.known[name](lab)
                cases = chosen(row, options.case)
                measured = run_row(row, cases, share)
            except (Failed, OSError, subprocess.CalledProcessError) as problem:
                failed.append((name, str(problem)))
                print(f"bench: {name} failed: {problem}", file=sys.stderr)
                lab.clear()
                continue
            machines = dict.fromkeys(measured, machine.facts())
            if options.case and name in results["rows"]:
                earlier = results["rows"][name]
                measured, machines = {**earlier["cases"], **measured}, {**earlier["machines"], **machines}
            results["rows"][name] = {"title": row.title, "machines": machines, "cases": measured}
            missed = [verdict for verdict in report.judged(row, results["rows"][name]) if not verdict["met"]]
            if row.strict and missed:
                failed.append((name, ", ".join(f"{verdict['case']} takes {verdict['median']:.2f}" for verdict in missed)))
            if not options.vout:
                report.save(file, results)
    finally:
        lab.close()
    return failed


def chosen(row: Row, wanted: list[str]) -> list[str]:
    """Returns the cases to measure: those that are wanted, or all."""
    known = row.cases()
    unknown = [case for case in wanted if case not in known]
    if unknown:
        raise Failed(f"there is no case {', '.join(unknown)}; there are {', '.join(known)}")
    return [case for case in known if not wanted or case in wanted]


def run_row(row: Row, cases: list[str], share: float) -> dict:
    """Measures cases of a row, interleaved, and stops early where the row's time is over."""
    print(f"\n== {row.name}: {row.title}")
    measured = {}
    start = time.monotonic()
    for done, case in enumerate(cases):
        row.setup(case)
        # What an earlier case left over, the later ones may use; large cases come last.
        until = start + row.seconds * share * (done + 1) / len(cases)
        measured[case] = run_case(row, case, until)
        row.lab.clear()
        print_case(row, case, measured[case])
    return measured


def run_case(row: Row, case: str, until: float) -> dict:
    """Runs every variant once a round, beginning with another one each time."""
    variants = row.variants(case)
    samples = {variant.label: [] for variant in variants}
    rounds = row.lab.options.rounds or row.rounds
    if row.rounds == 1:
        rounds = 1
    for turn in range(rounds):
        began = time.monotonic()
        # A row whose variants follow from each other has only one order.
        first = 0 if row.in_order else turn % len(variants)
        for variant in variants[first:] + variants[:first]:
            row.before(case, variant)
            # What one run left to be written is not to be written during the next one.
            os.sync()
            samples[variant.label].append(row.measure(case, variant))
        now = time.monotonic()
        if row.lab.options.rounds is None and now + (now - began) > until:
            break
    return samples


def print_case(row: Row, case: str, samples: dict) -> None:
    """Prints medians and quartiles of what was measured last."""
    for label, of in samples.items():
        texts = []
        for metric in of[0]:
            unit, factor = report.unit_of(row, metric) if metric != "whole" else ("ms", 1e3)
            found = Summary.of([sample[metric] * factor for sample in of])
            spread = f" ({report.number(found.low)}–{report.number(found.high)})" if found.count > 1 else ""
            texts.append(f"{metric} {report.number(found.median)}{spread} {unit}")
        print(f"   {case:16} {label:24} n={len(of)}  " + "  ".join(texts))
