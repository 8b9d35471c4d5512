"""The finding claims no more than the numbers hold."""

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_kd.evaluation.report.finding import best_student, caveat, finding, paired_difference


def _model(name: str, role: str, trainer: str, **domains: list[float]) -> dict:
    found = {}
    for domain, dice in domains.items():
        cases = {f"case{i}": {"dice": v} for i, v in enumerate(dice)}
        found[domain] = {"dice": float(np.nanmean(dice)), "cases": cases, "unseen": domain != "home"}
    return {"name": name, "role": role, "trainer": trainer, "domains": found}


def _report(*models: dict, seed: int | None = 0) -> dict:
    return {"models": list(models), "seed": seed}


def _students(better: float, noise: float, n: int = 8, **domains: float) -> list[dict]:
    """An undistilled student and "gkd", which is better by a mean amount that varies between cases."""
    rng = np.random.default_rng(0)
    domains = domains or {"home": 0.8}
    base = {d: m + rng.normal(0, 0.05, n) for d, m in domains.items()}
    wobble = rng.normal(size=n)
    wobble = noise * (wobble - wobble.mean()) / wobble.std(ddof=1)
    other = {d: v + better + wobble for d, v in base.items()}
    plain = _model("student", "student", "nnUNetTrainerScheduled", **{d: list(v) for d, v in base.items()})
    return [plain, _model("gkd", "student", "nnUNetTrainerGKD", **{d: list(v) for d, v in other.items()})]


def test_interval_is_the_paired_t_interval():
    plain, gkd = _students(0.02, 0.01)
    mean, low, high = paired_difference(gkd, plain, ["home"])
    d = [
        a["dice"] - b["dice"]
        for a, b in zip(gkd["domains"]["home"]["cases"].values(), plain["domains"]["home"]["cases"].values(), strict=True)
    ]
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(d), expected.low, expected.high))


def test_domains_weigh_the_same_and_undefined_cases_drop_out():
    a = _model("a", "student", "x", one=[0.9, 0.8, 0.7, math.nan], two=[0.5] * 3 + [0.6] * 3)
    b = _model("b", "student", "x", one=[0.7, 0.7, 0.6, 0.2], two=[0.4, 0.5, 0.4] * 2)
    mean, low, high = paired_difference(a, b, ["one", "two"])
    one, two = np.array([0.2, 0.1, 0.1]), np.array([0.1, 0.0, 0.1, 0.2, 0.1, 0.2])
    variance = one.var(ddof=1) / 3, two.var(ddof=1) / 6
    assert mean == pytest.approx((one.mean() + two.mean()) / 2)
    # Welch's test of one against -two has the same standard error and degrees of freedom
    welch = stats.ttest_ind(one, -two, equal_var=False)
    half = stats.t.ppf(0.975, welch.df) * math.sqrt(sum(variance)) / 2
    assert (low, high) == pytest.approx((mean - half, mean + half))


def test_a_difference_within_noise_is_called_so():
    text = " ".join(finding(_report(*_students(0.002, 0.02))))
    assert "gkd is the best student" in text and "0.002 above the undistilled student (within noise: 95% interval -0.0" in text
    text = " ".join(finding(_report(*_students(0.02, 0.005))))
    assert "0.020 above the undistilled student (more than the variation between cases: 95% interval +0.0" in text


def test_a_tie_or_a_loss_is_not_dressed_up():
    text = " ".join(finding(_report(*_students(-0.03, 0.005))))
    assert "the undistilled student is the best student" in text and "0.030 above gkd (more than" in text
    assert "(within noise: 95% interval +0.000 to +0.000)" in finding(_report(*_students(0.0, 0.0)))[0]


def test_few_cases_tell_nothing():
    assert "too few cases to tell this from noise" in finding(_report(*_students(0.1, 0.001, n=2)))[0]


def test_choosing_among_many_widens_the_interval():
    plain, gkd = _students(0.0072, 0.008)
    assert "more than the variation" in finding(_report(plain, gkd))[0]
    rivals = [{**plain, "name": f"kd{i}", "trainer": "nnUNetTrainerKD"} for i in range(8)]
    assert "within noise" in finding(_report(plain, gkd, *rivals))[0]


def test_home_and_unseen_get_a_sentence_each_and_the_teacher_is_named():
    students = _students(0.02, 0.005, home=0.8, one=0.6, two=0.5)
    teacher = _model("teacher", "teacher", "nnUNetTrainer", home=[0.9] * 8, one=[0.7] * 8, two=[0.6] * 8)
    report = _report(teacher, *students)
    home, unseen = finding(report)
    assert home.startswith("At home (home) gkd") and home.endswith("the teacher's is 0.900.")
    assert unseen.startswith("On the 2 unseen domains gkd") and "over 16 cases" in unseen and "0.650." in unseen
    assert best_student(report) == "gkd" and best_student(_report(teacher)) is None
    assert "one seed (0)" in caveat(report) and "not the variation between seeds" in caveat(report)
    assert finding(_report(teacher)) == []
