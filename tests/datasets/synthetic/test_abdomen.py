import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from nnunet_kd.cli.main import main
from nnunet_kd.datasets.synthetic.abdomen import DOMAINS, generate, make_case, render
from nnunet_kd.datasets.synthetic.abdomen_anatomy import LIVER, SPLEEN, TISSUES, Anatomy, draw_anatomy
from nnunet_kd.datasets.verify import verify_dataset
from nnunet_kd.utils.errors import KDError

SMALL = dict(n_train=4, n_test=1, n_unseen=1)


def digest(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*.nii.gz"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("abdomen")
    return root, generate(root / "raw", root / "pre", first_id=911, seed=3, **SMALL)


@pytest.fixture(scope="module")
def trunks() -> list[Anatomy]:
    return [draw_anatomy(np.random.default_rng(k)) for k in range(4)]


@pytest.mark.slow
def test_datasets_that_nnunet_and_verify_accept(made, nnunet_accepts):
    root, names = made
    assert names == {
        "ct": "Dataset911_SynthAbdomenCT",
        "mr_t1": "Dataset912_SynthAbdomenT1",
        "mr_t2": "Dataset913_SynthAbdomenT2",
    }
    for key, name in names.items():
        nnunet_accepts(root / "raw" / name)
        found = verify_dataset(root / "raw" / name)
        assert not found.problems and not found.notes
        rows = dict(found.rows)
        assert rows["cases"] == (
            "4 in imagesTr, 1 in imagesTs, 5 labelled" if key == "ct" else "1 in imagesTr, 0 in imagesTs, 1 labelled"
        )
        assert rows["spacing (mm)"] == ("5.5 x 5.5 x 5.5" if key == "ct" else "5.5 x 5.5 x 8.25")
        content = json.loads((root / "raw" / name / "dataset.json").read_text())
        assert content["labels"] == {"background": 0, "liver": 1} and content["channel_names"] == {"0": "intensity"}
    folds = json.loads((root / "pre" / names["ct"] / "splits_final.json").read_text())
    assert len(folds) == 4 and len({c for f in folds for c in f["val"]}) == 4


def test_seed_and_number_decide_a_case(made, tmp_path: Path):
    root, _ = made
    before = digest(root / "raw")
    assert len(set(before.values())) == len(before)
    image, label, spacing = make_case((3, 3, 1, 0, 0), DOMAINS["mr_t1"])
    file = root / "raw" / "Dataset912_SynthAbdomenT1" / "imagesTr" / "SynthAbdomenT1_000_0000.nii.gz"
    written = SimpleITK.ReadImage(str(file))
    assert np.array_equal(SimpleITK.GetArrayFromImage(written), image) and written.GetSpacing() == spacing
    assert not np.array_equal(make_case((4, 3, 1, 0, 0), DOMAINS["mr_t1"])[0], image)
    assert image.shape == label.shape == (32, 64, 64)


def test_livers_are_of_one_piece_on_the_right_and_vary(trunks):
    volumes = []
    for trunk in trunks:
        assert ndimage.label(trunk.liver)[1] == 1
        z, y, x = (np.argwhere(trunk.liver) - (np.array(trunk.liver.shape) - 1) / 2).mean(0)
        assert x < -3 and z > -5  # the patient's right, above the middle
        volumes.append(trunk.liver.sum() * 5.5**3 / 1e6)
        assert (trunk.tissue == SPLEEN).sum() > 100
        assert trunk.vessels[~trunk.liver].max() == trunk.tumours[~trunk.liver].max() == 0 < trunk.vessels.max()
        assert (trunk.liver & (trunk.tissue != LIVER)).sum() == 0
    assert min(volumes) > 0.5 and max(volumes) < 2.6 and max(volumes) / min(volumes) > 1.15  # litres


def test_the_same_trunk_looks_as_the_domains_names_say(trunks):
    """Contrast of the liver to spleen and fat, noise, thickness of slices; the label stays."""
    for trunk in trunks[:2]:
        means, noise = {}, {}
        for key, domain in DOMAINS.items():
            image, label = render(np.random.default_rng(5), trunk, domain)
            zoom = (image.shape[0] / 48, 1, 1)
            tissue = ndimage.zoom(trunk.tissue, zoom, order=0)
            means[key] = {t: np.median(image[tissue == TISSUES.index(t)]) for t in ("liver", "spleen", "fat", "air")}
            noise[key] = image[:, :4, :4].astype(float).std()
            overlap = 2 * (label * ndimage.zoom(trunk.liver, zoom, order=0)).sum() / (label.sum() + trunk.liver.sum() * zoom[0])
            assert overlap > 0.93
        assert abs(means["ct"]["liver"] - means["ct"]["spleen"]) < 40 and means["ct"]["fat"] < -60 and means["ct"]["air"] < -950
        t1, t2 = means["mr_t1"], means["mr_t2"]
        assert t1["fat"] > 1.2 * t1["liver"] > 1.3 * t1["spleen"] and t2["spleen"] > 1.5 * t2["liver"] > 1.1 * t2["fat"]
        assert noise["mr_t1"] > 2 and (render(np.random.default_rng(5), trunk, DOMAINS["mr_t1"])[0] >= 0).all()


def test_the_command(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "pre"))
    command = ["synth", "vessels", "--dataset-id", "921", "--seed", "1", "--cases", "4", "1", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Dataset921_SynthSource: the source" in said and "Dataset924_SynthNoise: unseen" in said
    assert json.loads((tmp_path / "raw" / "Dataset921_SynthSource" / "synthetic.json").read_text())["seed"] == 1
    assert main(command) == 2 and "add --overwrite" in capsys.readouterr().err
    assert main(["synth", "abdomen", "--dataset-id", "923"]) == 2
    assert "923 is already taken by Dataset923_SynthTexture" in capsys.readouterr().err
    assert main(["synth", "abdomen", "--dataset-id", "930", "--cases", "3", "1", "1"]) == 2
    assert "at least 4 training cases" in capsys.readouterr().err
    assert sorted(p.name[:10] for p in (tmp_path / "raw").iterdir()) == [f"Dataset92{k}" for k in (1, 2, 3, 4)]


def test_wrong_numbers(tmp_path: Path):
    for wrong in ({"n_train": 3}, {"n_test": 0}, {"n_unseen": 0}, {"seed": -1}):
        with pytest.raises(KDError, match="correct them"):
            generate(tmp_path / "raw", tmp_path / "pre", **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())
