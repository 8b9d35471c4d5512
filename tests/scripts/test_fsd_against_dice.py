"""scripts/fsd_against_dice.py: the correlation is SciPy's, its p-value that of all orders."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "fsd_against_dice.py")


def test_rank_correlation():
    spearman = runpy.run_path(SCRIPT)["spearman"]
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=6), rng.normal(size=6)
    rho, p = spearman(list(a), list(b))
    exact = stats.permutation_test((a,), lambda x: stats.spearmanr(x, b).statistic, permutation_type="pairings")
    assert rho == pytest.approx(stats.spearmanr(a, b).statistic) and p == pytest.approx(exact.pvalue, abs=1e-9)
    assert spearman([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx((1, 2 / 24))
    assert np.isnan(spearman([1, np.nan, 3], [1, 2, 3])[0])


def test_table(tmp_path, monkeypatch, capsys):
    import json

    rows = []
    for i, model in enumerate("abc"):
        for comparison, target in (("domains", "H (other half)"), ("domains", "U"), ("prediction", "prediction on U")):
            rows.append(
                {
                    "model": model,
                    "comparison": comparison,
                    "target": target,
                    "relative": 0.1 * i,
                    "relative_extrapolated": None,
                    "kernel": -i,
                }
            )
    (tmp_path / "f.json").write_text(json.dumps({"fsd": rows}))
    lines = ["method,seed,dataset,case,dice,params"]
    lines += [f"{m},0,{d},x,{0.8 if d == 'H' else 0.7 - 0.1 * i},{9 - i}" for i, m in enumerate("abc") for d in "HU"]
    (tmp_path / "c.csv").write_text("\n".join([*lines, "a,1,H,x,0.1,9"]))
    arguments = [SCRIPT, str(tmp_path / "f.json"), str(tmp_path / "c.csv"), "--home", "H", "--unseen", "U"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(SCRIPT, run_name="__main__")
    out = capsys.readouterr().out
    assert "| b | 0.8000 | 0.6000 | 0.2000 | 0.1000 | 0.1000 | nan | -1.0000 | 0.1000 |" in out
    assert "Spearman of relative FSD and the drop: +1.00 (p 0.33, n 3); without a: +1.00" in out
    assert "kernel and the drop: -1.00" in out and "extrapolated and the drop: +nan" in out
