"""Rules that hold for any shape, spacing and label set, tried on examples that hypothesis draws (always the same ones).

nnU-Net's own code is the oracle: its readers, preprocessing, metrics and predictor.
"""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from runner_models import images, model_folder, nnunet_predicts, plans

from nnunet_kd.deploy.runner import Predictor, RunnerError
from nnunet_kd.deploy.runner.images import Image, read, write
from nnunet_kd.deploy.runner.memory import Memory
from nnunet_kd.deploy.runner.model import read_model
from nnunet_kd.deploy.runner.preprocess import prepare
from nnunet_kd.deploy.runner.resample import new_shape
from nnunet_kd.evaluation.images import read_map
from nnunet_kd.evaluation.metrics.overlap import case_metrics

SIZES = st.tuples(*[st.integers(1, 12)] * 3)
SPACINGS = st.tuples(*[st.sampled_from([0.3, 0.7, 1.0, 1.5, 4.0])] * 3)
LABEL_SETS = st.lists(st.sampled_from([1, 2, 3, (1, 2), (2, 3), (1, 2, 3)]), min_size=1, max_size=3, unique=True)


def examples(number: int):
    """Few and always the same: the suite stays quick, and a failure can be repeated."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=number, derandomize=True, deadline=None, database=None, suppress_health_check=quiet)


@examples(200)
@given(SIZES, SPACINGS, SPACINGS)
def test_sizes_at_another_spacing_are_nnunets(size, spacing, target):
    assert new_shape(size, spacing, target) == tuple(compute_new_shape(size, spacing, target))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models with two channels: isotropic, of thick slices, and transposed with z-scores inside the mask."""
    folder = tmp_path_factory.mktemp("properties")
    kinds = {
        "isotropic": plans((16, 16, 16), (1.0, 1.0, 1.0), channels=2),
        "thick": plans((8, 16, 16), (4.0, 0.7, 0.7), channels=2),
        "transposed": plans((16, 16, 16), (1.0, 1.0, 1.0), channels=2, transpose=(1, 0, 2), use_mask_for_norm=[True, False]),
    }
    return {name: (model_folder(folder / name, plan, mirror=()), PlansManager(plan)) for name, plan in kinds.items()}


@pytest.mark.parametrize("kind", ["isotropic", "thick", "transposed"])
@examples(25)
@given(size=SIZES, spacing=SPACINGS, empty=st.integers(0, 3), seed=st.integers(0, 9))
def test_the_runner_prepares_any_volume_as_nnunet_does(models, kind, size, spacing, empty, seed):
    folder, manager = models[kind]
    data = np.random.default_rng(seed).normal(50, 20, (2, *size)).astype(np.float32)
    data[:, :empty] = 0  # cropped away, the whole volume perhaps
    configuration = manager.get_configuration("3d_fullres")
    memory = Memory(1e9)
    try:
        ours = prepare(Image(data, spacing, {}), read_model(folder), memory)
    except RunnerError as error:
        assert "too thin along" in str(error)
        # no voxel would be left: nnU-Net divides by zero, or returns an empty array
        return
    with np.errstate(all="ignore"):
        theirs, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
            data, None, {"spacing": spacing}, manager, configuration, {"labels": {"background": 0, "a": 1}}
        )
    assert ours.data.shape == theirs.shape
    np.testing.assert_allclose(ours.data, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("reader", "ending"),
    [
        ("SimpleITKIO", ".nii.gz"),
        ("SimpleITKIO", ".mha"),
        ("NibabelIO", ".nii.gz"),
        ("NibabelIOWithReorient", ".nii.gz"),
        ("Tiff3DIO", ".tif"),
    ],
)
@examples(15)
@given(size=SIZES, spacing=SPACINGS)
def test_any_volume_is_read_written_and_measured_in_one_shape(tmp_path, reader, ending, size, spacing):
    """Runner, metrics and nnU-Net's reader agree on the order of the axes, single slices included."""
    file, out = tmp_path / f"case_0000{ending}", tmp_path / f"case{ending}"
    array = np.arange(np.prod(size), dtype=np.int16).reshape(size)
    if ending == ".tif":
        import tifffile

        tifffile.imwrite(file, array, photometric="minisblack")
    else:
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing([float(s) for s in spacing[::-1]])
        SimpleITK.WriteImage(image, str(file))
    theirs, properties = recursive_find_reader_writer_by_name(reader)().read_images([str(file)])
    ours = read([file], reader)
    np.testing.assert_array_equal(ours.data, theirs)
    np.testing.assert_allclose(ours.spacing, properties["spacing"], rtol=1e-5)
    write((ours.data[0] % 3).astype(np.uint8), out, reader, ours.geometry)
    measured, found = read_map(out)
    np.testing.assert_array_equal(measured, array % 3)
    np.testing.assert_allclose(found, spacing if ending != ".tif" else (1, 1, 1), rtol=1e-5)


@examples(40)
@given(
    size=st.one_of(SIZES, st.tuples(*[st.integers(1, 12)] * 2)),
    labels=LABEL_SETS,
    ignore=st.sampled_from([None, 4]),
    share=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    seed=st.integers(0, 9),
)
def test_counts_dice_and_iou_are_nnunets_for_any_shape_and_label_set(size, labels, ignore, share, seed):
    draw = np.random.default_rng(seed)
    truth, prediction = (draw.integers(0, 4, size) * (draw.random(size) < share) for _ in range(2))
    if ignore is not None:
        truth[draw.random(size) < 0.3] = ignore
    ours = case_metrics(prediction, truth, labels, ignore_label=ignore)

    class Given:
        """A reader of arrays."""

        @staticmethod
        def read_seg(array):
            return array, {}

    theirs = compute_metrics(truth, prediction, Given(), labels, ignore)["metrics"]
    for label in labels:
        name = str(label) if isinstance(label, int) else "+".join(map(str, label))
        values = ours if len(labels) == 1 else ours["labels"][name]
        for key, theirs_key in (("tp", "TP"), ("fp", "FP"), ("fn", "FN"), ("tn", "TN"), ("dice", "Dice"), ("iou", "IoU")):
            assert values[key] == pytest.approx(theirs[label][theirs_key], nan_ok=True)
        assert values["hd95"] >= 0 or np.isnan(values["hd95"])
        defined = [values[key] for key in ("nsd", "dice", "iou") if not np.isnan(values[key])]
        assert all(0 <= value <= 1 for value in defined)


@examples(4)
@given(size=st.tuples(*[st.integers(2, 24)] * 3), spacing=st.tuples(*[st.sampled_from([0.8, 1.0, 1.4])] * 3))
def test_the_runner_predicts_volumes_of_any_shape_as_nnunet_does(models, tmp_path_factory, size, spacing):
    folder, _ = models["isotropic"]
    scratch = tmp_path_factory.mktemp("any")
    source = images(scratch / "images", size, channels=2, spacing=spacing)
    Predictor(folder, threads=1).predict_folder(source, scratch / "ours")
    nnunet_predicts(folder, source, scratch / "theirs")
    ours, theirs = (SimpleITK.ReadImage(str(scratch / who / "case_0.nii.gz")) for who in ("ours", "theirs"))
    assert ours.GetSpacing() == theirs.GetSpacing() and ours.GetDirection() == theirs.GetDirection()
    ours, theirs = map(SimpleITK.GetArrayFromImage, (ours, theirs))
    assert (ours != theirs).sum() <= max(1, 1e-4 * ours.size)
