"""A Markdown table out of several demo reports (one per seed): mean Dice per model and domain, and wins, ties, losses.

    for s in 0 1 2 3 4; do nnunet-kd demo --seed $s -o runs/demo_seed$s; done
    python scripts/summarise_demos.py runs/demo_seed*/report.json

A difference of less than --tie Dice (default 0.005) counts as a tie. Reads only; takes no time (there is no --quick). The
last line on stdout is one JSON object with the figures of the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

PAIRS = (("gkd", "student"), ("gkd", "kd"), ("gkd", "teacher"), ("kd", "student"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="report.json files")
    parser.add_argument("--tie", type=float, default=0.005, help="smaller differences are ties (default: 0.005)")
    options = parser.parse_args()
    reports = sorted((json.loads(f.read_text(encoding="utf-8")) for f in options.reports), key=lambda r: r["seed"])
    dice = {r["seed"]: {m["name"]: {d: v["dice"] for d, v in m["domains"].items()} for m in r["models"]} for r in reports}
    for scores in dice.values():
        for by_domain in scores.values():
            by_domain["unseen mean"] = statistics.fmean(v for d, v in list(by_domain.items())[1:])
    seeds, models = list(dice), list(next(iter(dice.values())))
    domains = list(dice[seeds[0]][models[0]])

    print(f"| model | {' | '.join(domains)} |\n|---|{'---|' * len(domains)}")
    for model in models:
        cells = []
        for domain in domains:
            values = [dice[s][model][domain] for s in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.fmean(values):.3f} ± {spread:.3f} ({', '.join(f'{v:.3f}'[1:] for v in values)})")
        print(f"| {model} | {' | '.join(cells)} |")
    print(f"\nMean ± standard deviation over seeds {', '.join(map(str, seeds))} (each seed's value).\n")

    print(f"| comparison | {' | '.join(domains)} |\n|---|{'---|' * len(domains)}")
    record: dict[str, dict[str, list[int]]] = {}
    for a, b in PAIRS:
        cells = []
        for domain in domains:
            gaps = [dice[s][a][domain] - dice[s][b][domain] for s in seeds]
            won, lost = sum(g >= options.tie for g in gaps), sum(g <= -options.tie for g in gaps)
            record.setdefault(f"{a} - {b}", {})[domain] = [won, len(gaps) - won - lost, lost]
            cells.append(f"{statistics.fmean(gaps):+.3f} ({won}/{len(gaps) - won - lost}/{lost})")
        print(f"| {a} against {b} | {' | '.join(cells)} |")
    print(f"\nMean difference in Dice (seeds won/tied/lost; a tie is less than {options.tie}).")
    print(json.dumps({"dice": dice, "won_tied_lost": record, "seconds": {r["seed"]: r["seconds"] for r in reports}}))


if __name__ == "__main__":
    main()
