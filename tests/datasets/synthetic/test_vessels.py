import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from nnunet_kd.datasets.synthetic.vessels import DOMAINS, draw, generate, make_image
from nnunet_kd.utils.errors import KDError

SMALL = dict(size=64, n_train=5, n_test=2, n_unseen=2)


def digest(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*.*"))}


@pytest.fixture(scope="module")
def images() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Four images of every domain in the demo's size."""
    return {
        key: [make_image(np.random.default_rng((0, i, k)), 160, domain) for k in range(4)]
        for i, (key, domain) in enumerate(DOMAINS.items())
    }


def test_folders_names_and_splits(tmp_path: Path):
    names = generate(tmp_path / "raw", tmp_path / "pre", first_id=901, **SMALL)
    assert names == {
        "source": "Dataset901_SynthSource",
        "contrast": "Dataset902_SynthContrast",
        "texture": "Dataset903_SynthTexture",
        "noise": "Dataset904_SynthNoise",
    }
    for key, name in names.items():
        folder = tmp_path / "raw" / name
        n = 5 if key == "source" else 2
        assert json.loads((folder / "dataset.json").read_text())["numTraining"] == n
        assert len(list((folder / "imagesTr").iterdir())) == len(list((folder / "labelsTr").iterdir())) == n
        assert (folder / "imagesTs").exists() == (key == "source")
        for image in folder.glob("images*/*.png"):
            label = folder / image.parent.name.replace("images", "labels") / image.name.replace("_0000", "")
            image, label = np.asarray(Image.open(image)), np.asarray(Image.open(label))
            assert image.shape == label.shape == (64, 64) and image.min() >= 1
            assert np.unique(label).tolist() == [0, 1]
    folds = json.loads((tmp_path / "pre" / names["source"] / "splits_final.json").read_text())
    cases = [f"SynthSource_{k:03d}" for k in range(5)]
    assert len(folds) == 4 and sorted(c for f in folds for c in f["val"]) == cases
    assert all(sorted(f["train"] + f["val"]) == cases for f in folds)
    assert [p.name for p in (tmp_path / "pre").iterdir()] == [names["source"]]


def test_the_seed_decides_everything(tmp_path: Path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate(tmp_path / folder / "raw", tmp_path / folder / "pre", seed=seed, **SMALL)
    a, b, c = (digest(tmp_path / folder) for folder in "abc")
    assert a == b
    pictures = [p for p in a if p.endswith(".png")]
    assert len(pictures) == 2 * (5 + 2 + 3 * 2) and all(a[p] != c[p] for p in pictures)
    assert len({a[p] for p in pictures}) == len(pictures)  # no case twice, in particular none in both parts


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path: Path):
    generate(tmp_path / "a", tmp_path / "pa", **SMALL)
    generate(tmp_path / "b", tmp_path / "pb", **{**SMALL, "n_train": 4, "n_unseen": 3})
    a, b = digest(tmp_path / "a"), digest(tmp_path / "b")
    common = [p for p in a if p in b and p.endswith(".png")]
    assert len(common) == 2 * (4 + 2 + 3 * 2) and all(a[p] == b[p] for p in common)


def test_drawing_covers_the_vessel_and_fades_over_one_pixel():
    points = np.stack([np.full(100, 10.0), np.linspace(2, 18, 100)], axis=1)
    picture = draw(21, points, np.full(100, 2.0))
    column = picture[:, 10]
    assert column[8:13] == pytest.approx([0.5, 1, 1, 1, 0.5], abs=0.02)
    assert column[:8].max() == column[13:].max() == 0
    thin = draw(21, points + 0.5, np.full(100, 0.5))  # between two rows
    assert (thin[:, 10] >= 0.5 - 0.02).sum() == 2


def test_trees_are_connected_thin_and_tapering(images):
    for key, cases in images.items():
        for _, label in cases:
            components, n = ndimage.label(label, np.ones((3, 3)))
            assert np.bincount(components.ravel())[1:].max() > 0.9 * label.sum(), key
            assert 0.04 < label.mean() < 0.35
            half_widths = ndimage.distance_transform_edt(label)[skeletonize(label > 0)]
            assert (half_widths <= 1.5).mean() > 0.15  # one or two pixels wide
            assert half_widths.max() >= 2


def darkness(image: np.ndarray, label: np.ndarray) -> float:
    """How much darker vessels are than the background next to them, in gray levels."""
    background = ~ndimage.binary_dilation(label > 0)
    nearby = ndimage.gaussian_filter(image * background, 4) / ndimage.gaussian_filter(background.astype(float), 4)
    return float((nearby - image)[label > 0].mean())


def test_vessels_are_dark_in_every_domain(images):
    for key, cases in images.items():
        assert all(darkness(image.astype(float), label) > 4 for image, label in cases), key


def test_the_domains_differ_in_what_their_names_say(images):
    def mean(key, measure):
        return np.mean([measure(image.astype(float), label) for image, label in images[key]])

    def noise(image, label):
        return np.median(np.abs(image - ndimage.median_filter(image, 3)))

    def light(image, label):
        return ndimage.gaussian_filter(image, 20).std()

    def texture(image, label):
        band = ndimage.gaussian_filter(image, 1.5) - ndimage.gaussian_filter(image, 5)
        return band[~ndimage.binary_dilation(label > 0, iterations=4)].std()

    def centre_line(image, label):
        """Wide vessels: the centre line against the rest of the vessel."""
        wide = ndimage.binary_erosion(label > 0, iterations=2)
        return image[wide].mean() - image[(label > 0) & ~wide].mean() if wide.any() else 0.0

    assert mean("contrast", darkness) < 0.7 * mean("source", darkness)
    assert mean("contrast", light) > 1.5 * mean("source", light)
    assert mean("texture", texture) > 2 * mean("source", texture)
    assert mean("noise", noise) > 1.4 * mean("source", noise)
    assert mean("source", centre_line) < 0 < mean("noise", centre_line)
    assert mean("noise", lambda i, v: v.mean()) > 1.1 * mean("source", lambda i, v: v.mean())


def test_wrong_numbers_and_taken_ids(tmp_path: Path):
    for wrong in ({"size": 32}, {"n_train": 3}, {"n_unseen": 0}, {"seed": -1}):
        with pytest.raises(KDError, match="correct them"):
            generate(tmp_path / "raw", tmp_path / "pre", **{**SMALL, **wrong})
    with pytest.raises(KDError, match="dataset id"):
        generate(tmp_path / "raw", tmp_path / "pre", first_id=998, **SMALL)
    assert not (tmp_path / "raw").exists()  # ids are checked before the first image is drawn
    (tmp_path / "raw" / "Dataset903_Mine").mkdir(parents=True)
    with pytest.raises(KDError, match="Dataset903_Mine"):
        generate(tmp_path / "raw", tmp_path / "pre", **SMALL)
    assert [p.name for p in (tmp_path / "raw").iterdir()] == ["Dataset903_Mine"]


def test_overwrite(tmp_path: Path):
    generate(tmp_path / "raw", tmp_path / "pre", **SMALL)
    with pytest.raises(KDError, match="--overwrite"):
        generate(tmp_path / "raw", tmp_path / "pre", seed=1, **SMALL)
    before = digest(tmp_path / "raw")
    generate(tmp_path / "raw", tmp_path / "pre", seed=1, overwrite=True, **SMALL)
    assert digest(tmp_path / "raw").keys() == before.keys() and digest(tmp_path / "raw") != before
