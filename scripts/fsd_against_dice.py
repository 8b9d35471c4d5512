"""Does FSD rank models as their loss of Dice on an unseen domain does?

    python scripts/fsd_against_dice.py FSD.json COMPARISON.csv --home CHASE_DB1 --unseen DRIVE_dev --seed 0

FSD.json as `nnunet-kd fsd -o` writes it, for models called as the methods in COMPARISON.csv, which `nnunet-kd compare` has
written. Prints a table and, for every distance, Spearman's rank correlation with the drop of Dice from home to the unseen
domain over the models, its exact two-sided p-value (all orders of the models), and both without the heaviest model (a teacher).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from nnunet_kd.utils.tables import markdown_table

DISTANCES = {
    "relative FSD": ("domains", "relative"),
    "relative, extrapolated": ("domains", "relative_extrapolated"),
    "kernel": ("domains", "kernel"),
    "prediction against annotation": ("prediction", "relative"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fsd", type=Path)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--home", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--seed", default="0")
    o = parser.parse_args()
    rows = json.loads(o.fsd.read_text(encoding="utf-8"))["fsd"]
    with o.csv.open(newline="") as stream:
        cases = [r for r in csv.DictReader(stream) if r["seed"] == o.seed]
    models = list(dict.fromkeys(r["model"] for r in rows))
    dice = {(m, d): _mean(cases, m, d) for m in models for d in (o.home, o.unseen)}
    drop = {m: dice[m, o.home] - dice[m, o.unseen] for m in models}
    heaviest = max(models, key=lambda m: max((int(r["params"]) for r in cases if r["method"] == m), default=0))
    values = {name: {m: _of(rows, m, o.unseen, *key) for m in models} for name, key in DISTANCES.items()}
    floor = {m: _of(rows, m, f"{o.home} (other half)", "domains", "relative") for m in models}
    head = ["model", f"Dice {o.home}", f"Dice {o.unseen}", "drop", "floor (relative)", *DISTANCES]
    lines = [head]
    for m in models:
        numbers = [dice[m, o.home], dice[m, o.unseen], drop[m], floor[m], *(v[m] for v in values.values())]
        lines.append([m, *(f"{n:.4f}" for n in numbers)])
    print(f"{markdown_table(lines)}\n")
    for name, found in values.items():
        shown = []
        for chosen in (models, [m for m in models if m != heaviest]):
            rho, p = spearman([found[m] for m in chosen], [drop[m] for m in chosen])
            shown.append(f"{rho:+.2f} (p {p:.2f}, n {len(chosen)})")
        print(f"Spearman of {name} and the drop: {shown[0]}; without {heaviest}: {shown[1]}")


def spearman(a: list[float], b: list[float]) -> tuple[float, float]:
    """Rank correlation and its exact two-sided p-value over all orders. NaN if a value is."""
    if not np.isfinite([*a, *b]).all():
        return math.nan, math.nan
    ranks = [rankdata(x) - (len(x) + 1) / 2 for x in (a, b)]
    scale = math.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    observed = ranks[0] @ ranks[1]
    orders = np.array(list(itertools.permutations(ranks[0])))
    reached = np.abs(orders @ ranks[1]) >= abs(observed) - 1e-9
    return float(observed / scale), float(reached.mean())


def _mean(cases: list[dict], method: str, domain: str) -> float:
    values = [float(r["dice"]) for r in cases if r["method"] == method and r["dataset"] == domain]
    if not values:
        raise SystemExit(f"no rows of method {method} on {domain} with this seed: name the models as the CSV's methods")
    return float(np.nanmean(values))


def _of(rows: list[dict], model: str, domain: str, comparison: str, key: str) -> float:
    wanted = domain if comparison == "domains" else f"prediction on {domain}"
    (found,) = [r[key] for r in rows if (r["model"], r["target"], r["comparison"]) == (model, wanted, comparison)]
    return math.nan if found is None else found


if __name__ == "__main__":
    main()
