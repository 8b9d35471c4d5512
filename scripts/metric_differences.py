"""Other metrics than Dice, method against method over several seeds, from one report of `nnunet-kd evaluate`.

    M=docs/results/models; nnunet-kd evaluate --model a_seed0=$M/a_4-7-14-26_seed0 --model a_seed1=... --fsd none ... -o OUT
    python scripts/metric_differences.py OUT/report.csv --against a --clusters 'CHASEDB1_(\\d\\d)|(DRIVE.*)'

Models whose names differ in `_seedN` only are one method. Prints, per domain, every method's mean over seeds and cases, and its
difference from the method --against: paired by case and seed, with a 95% bootstrap interval that draws whole seeds and whole
clusters (first group of --clusters that matches in the case's name; default: the case). Cases where a metric is not defined
(NaN) are left out and counted. Reads only. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
from collections import defaultdict
from pathlib import Path

from nnunet_kd.comparison.analysis.statistics import Difference, Scores, paired_difference
from nnunet_kd.utils.tables import markdown_table

METRICS = ("dice", "cldice", "nsd", "hd95", "assd")
PERCENT = ("dice", "cldice", "nsd", "iou", "sensitivity", "specificity", "accuracy")  # differences in points
_SEED = re.compile(r"_seed(\d+)$")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.csv of nnunet-kd evaluate")
    parser.add_argument("--against", required=True, metavar="METHOD")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    parser.add_argument("--clusters", help="regular expression; its first matching group is the cluster")
    o = parser.parse_args()
    try:
        scores = read_scores(o.report, o.metrics)
        found = differences(scores, o.against, o.clusters)
    except (ValueError, OSError, re.error) as error:
        raise SystemExit(f"error: {error}") from None
    for domain, methods in scores.items():
        print(f"{domain}\n\n{table(methods, found[domain], o.metrics)}\n")
    print(json.dumps({d: {m: {k: vars(v) for k, v in r.items()} for m, r in rows.items()} for d, rows in found.items()}))


def read_scores(report: Path, metrics: list[str]) -> dict[str, dict[str, dict[str, Scores]]]:
    """``{domain: {method: {metric: {((seed, 0), case): value}}}}``.

    Raises ValueError if the file lacks a metric or holds a model twice.
    """
    with report.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    missing = [m for m in metrics if not rows or m not in rows[0]]
    if missing:
        raise ValueError(f"{report} has no column {', '.join(missing)}: name metrics of {', '.join(rows[0]) if rows else 'it'}")
    scores: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for row in rows:
        seed = _SEED.search(row["model"])
        key = ((int(seed[1]) if seed else 0, 0), row["case"])
        method = scores[row["domain"]][_SEED.sub("", row["model"])]
        for metric in metrics:
            if key in method[metric]:
                raise ValueError(f"{report} holds case {row['case']} of {row['model']} more than once")
            method[metric][key] = float(row[metric] or "nan")
    return scores


def differences(scores: dict, against: str, clusters: str | None = None) -> dict[str, dict[str, dict[str, Difference]]]:
    """``{domain: {method: {metric: Difference}}}`` of every other method from ``against``; no shared pair, no entry.

    Raises ValueError for an unknown method, and for a case that ``clusters`` does not match.
    """

    def cluster(case: str) -> str:
        found = re.search(clusters, case) if clusters else None
        if clusters and found is None:
            raise ValueError(f"--clusters {clusters} does not match case {case}")
        return next((g for g in found.groups() if g), found[0]) if found else case

    found: dict = {}
    for domain, methods in scores.items():
        if against not in methods:
            raise ValueError(f'no method "{against}" on {domain}, only {", ".join(methods)}')
        for method, values in methods.items():
            if method != against:
                pairs = {k: paired_difference(v, methods[against][k], cluster) for k, v in values.items()}
                found.setdefault(domain, {})[method] = {k: v for k, v in pairs.items() if v is not None}
    return found


def table(methods: dict[str, dict[str, Scores]], found: dict[str, dict[str, Difference]], metrics: list[str]) -> str:
    """Markdown: mean, and difference with interval, per method and metric."""
    lines = [["method", "seeds", *metrics]]
    for method, values in methods.items():
        cells = []
        for metric in metrics:
            defined = [v for v in values[metric].values() if not math.isnan(v)]
            cell = f"{sum(defined) / len(defined):.4f}" if defined else "nan"
            left_out = len(values[metric]) - len(defined)
            difference = found.get(method, {}).get(metric)
            if difference is not None:
                scale = 100 if metric in PERCENT else 1
                numbers = (f"{scale * n:+.2f}" for n in (difference.mean, difference.low, difference.high))
                cell += " ({} [{}, {}])".format(*numbers)
            cells.append(cell + (f", {left_out} undefined" if left_out else ""))
        lines.append([method, str(len({seed for seed, _ in values[metrics[0]]})), *cells])
    return markdown_table(lines)


if __name__ == "__main__":
    main()
