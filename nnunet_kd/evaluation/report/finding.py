"""What the report's numbers say in plain words, and how sure one can be of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

PLAIN_TRAINERS = ("nnUNetTrainer", "nnUNetTrainerScheduled")


def finding(report: Mapping) -> list[str]:
    """One sentence for the home domain and one for the unseen ones.

    A difference counts as one only if its interval leaves out 0: 95%, paired by case (Student's t; domains weigh the
    same), widened for having chosen the best of several students (Bonferroni).
    """
    names, unseen = domain_names(report), unseen_domains(report)
    home = [d for d in names if d not in unseen]
    sentences = []
    if home:
        sentences.append(_sentence(report, f"At home ({', '.join(home)})", home))
    if len(unseen) == 1:
        sentences.append(_sentence(report, f"On the unseen domain ({unseen[0]})", unseen))
    elif unseen:
        sentences.append(_sentence(report, f"On the {len(unseen)} unseen domains", unseen))
    return [s for s in sentences if s]


def caveat(report: Mapping) -> str:
    """What the intervals of the finding do not cover."""
    seed = "" if report.get("seed") is None else f" with one seed ({report['seed']})"
    return (
        f"Every model was trained once{seed}. The intervals hold the variation between cases, not the variation between "
        "seeds, which is not measured here and can be as large as the differences above."
    )


def paired_difference(
    first: Mapping, second: Mapping, domains: Sequence[str], confidence: float = 0.95
) -> tuple[float, float, float]:
    """Mean Dice of one model minus another's on the same cases, with its interval (Student's t); domains weigh the same.

    Returns NaN bounds where a domain has fewer than three cases for which both models have a Dice.
    """
    means, variances, freedom = [], [], []
    for domain in domains:
        a, b = (m["domains"][domain]["cases"] for m in (first, second))
        d = np.array([as_float(a[c]["dice"]) - as_float(b[c]["dice"]) for c in a if c in b])
        d = d[np.isfinite(d)]
        means.append(d.mean() if len(d) else math.nan)
        variances.append(d.var(ddof=1) / len(d) / len(domains) ** 2 if len(d) > 2 else math.nan)
        freedom.append(len(d) - 1)
    mean, variance = float(np.mean(means)), float(np.sum(variances))
    if math.isnan(variance):
        return mean, math.nan, math.nan
    if variance == 0:
        return mean, mean, mean
    # degrees of freedom of a sum of means after Welch and Satterthwaite
    degrees_of_freedom = variance**2 / sum(v**2 / f for v, f in zip(variances, freedom, strict=True))
    half = float(stats.t.ppf((1 + confidence) / 2, degrees_of_freedom)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def best_student(report: Mapping) -> str | None:
    """Name of the student with the highest mean Dice on the unseen domains, or at home where there are none."""
    ranked = _ranked_students(report, unseen_domains(report) or domain_names(report))
    return ranked[0]["name"] if ranked else None


def ordered(models: Sequence[Mapping]) -> list[Mapping]:
    """Teachers first, else as given."""
    return sorted(models, key=lambda m: m["role"] != "teacher")


def teacher_of(report: Mapping) -> Mapping | None:
    """The first teacher among a report's models, None without one."""
    return next((m for m in report["models"] if m["role"] == "teacher"), None)


def domain_names(report: Mapping) -> list[str]:
    """All domains of a report, in the order they first appear."""
    return list(dict.fromkeys(d for m in report["models"] for d in m["domains"]))


def unseen_domains(report: Mapping) -> list[str]:
    """Those of them that some model has not been trained on."""
    return [d for d in domain_names(report) if any(m["domains"].get(d, {}).get("unseen") for m in report["models"])]


def mean_dice(model: Mapping, domains: Sequence[str]) -> float:
    """Mean of the domains' mean Dice; NaN unless the model has them all."""
    values = [as_float(model["domains"].get(d, {}).get("dice")) for d in domains]
    return float(np.mean(values)) if values else math.nan


def as_float(value: float | None) -> float:
    """NaN for None, which stands for NaN in report.json."""
    return math.nan if value is None else float(value)


def _ranked_students(report: Mapping, domains: Sequence[str]) -> list[Mapping]:
    students = [m for m in report["models"] if m["role"] != "teacher" and not math.isnan(mean_dice(m, domains))]
    return sorted(students, key=lambda m: -mean_dice(m, domains))


def _is_control(model: Mapping) -> bool:
    return model["trainer"] in PLAIN_TRAINERS


def _sentence(report: Mapping, place: str, domains: Sequence[str]) -> str:
    ranked = _ranked_students(report, domains)
    if not ranked:
        return ""
    best = ranked[0]
    value, n = mean_dice(best, domains), sum(len(best["domains"][d]["cases"]) for d in domains)
    over = f"a mean Dice of {value:.3f} over {n} case{'s' if n > 1 else ''}"
    if len(ranked) == 1:
        text = f"{place} {_name_in_sentence(best)} reaches {over}"
    else:
        # distilled against undistilled is what the reader asks; without a control, the two best
        kind = not _is_control(best)
        rival = next((m for m in ranked[1:] if _is_control(m) == kind), ranked[1])
        text = (
            f"{place} {_name_in_sentence(best)} is the best student with {over}, {_gap(best, rival, domains, len(ranked) - 1)}"
        )
    teacher = teacher_of(report)
    theirs = math.nan if teacher is None else mean_dice(teacher, domains)
    if not math.isnan(theirs):
        text += f"; the teacher's is {theirs:.3f}"
    return text + "."


def _gap(best: Mapping, rival: Mapping, domains: Sequence[str], choices: int) -> str:
    mean, low, high = paired_difference(best, rival, domains, 1 - 0.05 / choices)
    text = f"{mean:.3f} above {_name_in_sentence(rival)}"
    if math.isnan(low):
        return f"{text} (too few cases to tell this from noise)"
    judged = "more than the variation between cases" if low > 0 else "within noise"
    return f"{text} ({judged}: 95% interval {low:+.3f} to {high:+.3f})"


def _name_in_sentence(model: Mapping) -> str:
    return f"the undistilled {model['name']}" if _is_control(model) else model["name"]
