"""The textbook forms against the published implementations, the library against the textbook forms, and their benchmark."""

import importlib
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
try:
    bench_losses, textbook = (importlib.import_module(name) for name in ("bench_losses", "bench.textbook"))
finally:
    sys.path.pop(0)

TINY = ["--logits", "2x3x8x8", "2x3x4x4x6", "--features", "2x4x8x8", "2x4x4x4x6", "--rounds", "1", "--clock", "cpu"]


def wave(shape: tuple[int, ...], a: float, b: float, scale: float, offset: float = 0.0) -> torch.Tensor:
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * (torch.sin(a * i + offset) + 0.5 * torch.cos(b * i))).reshape(shape)


ZS, ZT = wave((2, 3, 8, 8), 0.7, 0.13, 2.0), wave((2, 3, 8, 8), 0.9, 0.31, 3.0, 0.4)
FS, FT = wave((2, 4, 8, 8), 1.3, 0.11, 1.0, 0.2), wave((2, 4, 8, 8), 0.77, 0.05, 1.0, 0.9)
REGRESSOR = partial(torch.nn.functional.conv2d, weight=wave((4, 4, 1, 1), 0.5, 0.2, 0.3))
Y = ((torch.arange(512) * 7 // 13) % 3).reshape(2, 16, 16)
FIRST_ROWS_IGNORED = torch.where(torch.arange(16).view(16, 1) < 5, -1, Y)

# what the published implementations give in float64; SKD's pair-wise part casts to float32 on the way, and the one
# with p = 1 adds 1e-6 to the lengths
PUBLISHED = {
    "kd": (lambda: textbook.kd(ZS, ZT), 1.0700748947886614),
    "kd, T=4": (lambda: textbook.kd(ZS, ZT, temperature=4.0), 1.976190851624269),
    "kd, two classes": (lambda: textbook.kd(ZS[:, :2], ZT[:, :2], temperature=4.0), 0.9658079175372654),
    "skd-pixelwise, not divided by N": (lambda: 2 * textbook.skd_pixelwise(ZS, ZT), 3.2336674613156857),
    "skd-pairwise": (lambda: textbook.skd_pairwise(FS, FT), 0.09264203906059265),
    "skd-pairwise, scale 0.25": (lambda: textbook.skd_pairwise(FS, FT, scale=0.25), 0.7710585594177246),
    "skd-2x2": (lambda: textbook.skd_2x2(FS, FT), 0.7710586244764347),
    "at": (lambda: textbook.attention(FS, FT), 0.0036806196225511434),
    "at, p=1": (lambda: textbook.attention(FS, FT, p=1), 0.0015099116608091683),
    "imd": (lambda: textbook.imd(FS, FT), 0.5775758949645817),
    "rad": (lambda: textbook.rad(FS, FT, (Y > 0).long(), classes=2), 0.022622849574199192),
    "fitnets": (lambda: textbook.fitnets(FS, FT, regressor=REGRESSOR), 0.7354302590053294),
    "ifvd": (lambda: textbook.ifvd(FS, FT, Y, classes=3), 0.6762971631398502),
    "ifvd, ignored pixels": (lambda: textbook.ifvd(FS, FT, FIRST_ROWS_IGNORED, classes=3), 0.21692063342086254),
    "cwd, T=1": (lambda: textbook.cwd(ZS, ZT, temperature=1.0), 2.2551075944866805),
    "cwd-logits": (lambda: textbook.cwd(ZS, ZT), 3.7671341223444954),
    "cwd-features": (lambda: textbook.cwd(FS, FT), 0.6188706608167929),
    "dist": (lambda: textbook.dist(ZS, ZT), 1.9536586153197977),
    "cirkd": (lambda: textbook.cirkd(FS, FT), 9.122663343287558),
    "fsp": (lambda: textbook.fsp((FS, FS * FS), (FT, FT * FT)), 0.008580037798506529),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_golden_textbook_forms_are_the_published_losses(name):
    compute, expected = PUBLISHED[name]
    coarse = name.startswith(("skd-pairwise", "skd-2x2", "at, p=1"))
    assert compute().item() == pytest.approx(expected, rel=1e-6 if coarse else 1e-9)


def test_the_textbook_form_for_regions_is_two_outcomes_per_channel():
    s, t = (torch.stack([z, torch.zeros_like(z)], 1) for z in (ZS[:, 0], ZT[:, 0]))
    expected = textbook.kd(s, t, temperature=2.0).item()
    assert textbook.kd_regions(ZS[:, :1], ZT[:, :1], temperature=2.0).item() == pytest.approx(expected, rel=1e-12)


# the larger one is pooled by CIRKD, and what is left of it does not fit into one piece of its relations
@pytest.mark.parametrize(
    ("case", "shape"),
    [
        pytest.param(case, shape, id=f"{case.title}, {len(shape) - 2}d")
        for case in bench_losses.CASES
        for shape in ((2, 4, 58, 56), (3, 3, 6, 8, 4))
    ],
)
def test_value_and_gradients_are_the_textbook_forms(case, shape):
    assert bench_losses.difference(case, shape, 3) < bench_losses.TOLERANCE


def test_the_benchmark_times_every_loss_that_has_a_textbook_form_in_two_and_three_dimensions(capsys, monkeypatch):
    from nnunet_kd.losses.registry import LOSSES

    monkeypatch.setattr(bench_losses, "CASES", tuple(replace(case, fill=min(case.fill, 2)) for case in bench_losses.CASES))
    assert bench_losses.main(TINY) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    features = ([2, 4, 8, 8], [2, 4, 4, 4, 6])
    shapes = {"logits": ([2, 3, 8, 8], [2, 3, 4, 4, 6]), "features": features, "pairs": features}
    expected = {(case.title, *shape) for case in bench_losses.CASES for shape in shapes[LOSSES[case.name].reads]}
    assert {(figure["loss"], *figure["shape"]) for figure in figures} >= expected
    for figure in figures:
        assert figure["ours_ms"]["median"] > 0 and figure["textbook_ms"]["median"] > 0
        assert figure["difference"] < 1e-6


def test_the_benchmark_stops_where_the_forms_differ(capsys, monkeypatch):
    wrong = bench_losses.Case("kd", lambda s, t, y: 1.00002 * textbook.kd(s, t))
    monkeypatch.setattr(bench_losses, "CASES", (wrong,))
    assert bench_losses.main([*TINY, "--losses", "kd"]) == 2
    error = capsys.readouterr().err
    assert "error: kd, 2x3x8x8: ours and the textbook form differ by 2.0e-05" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--losses", "nope"], 'unknown loss "nope"'),
        (["--features", "8x8"], '--features "8x8" must read'),
        (["--rounds", "0"], "at least 1"),
        (["--classes", "1"], "at least 2"),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert bench_losses.main([*TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("bench_losses: error: ") and error.count("\n") == 1
