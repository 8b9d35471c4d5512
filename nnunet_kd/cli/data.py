"""convert, verify, synth: data sets. Imports happen inside the functions, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_kd.utils.environment import nnunet_folder
from nnunet_kd.utils.errors import KDError


def add_convert(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd convert`."""
    p = commands.add_parser("convert", help="a public data set as an nnU-Net raw dataset")
    sets = "chase_db1, drive, stare, hrf, lits17, msd_liver, chaos_ct, chaos_mr, kvasir_seg, cvc_clinicdb, etis, polypgen"
    p.add_argument("name", help=f"{sets} or hippocampus (docs/datasets.md)")
    p.add_argument("source", type=Path, help="the published archive, or the folder it was unpacked to")
    p.add_argument("--dataset-id", type=int, required=True, help="nnU-Net dataset id, 1 to 999")
    splits = (
        "which cases train and which test: chase_db1 first20 (default), last8train; hrf first5 (default), all; otherwise all "
        "(default); chaos last5test; kvasir_seg last200; cvc_clinicdb last6sequences"
    )
    p.add_argument("--split", help=splits)
    p.add_argument("--observer", help="vessels: whose annotation; 1 or 2 (default: 1), STARE: ah or vk (default: ah)")
    p.add_argument("--channels", choices=["green", "rgb", "gray"], help="vessels: default green")
    width = "vessels: width of the field of view in pixels, 0 keeps it (default: 512)"
    p.add_argument("--fov-width", type=int, help=width)
    sides = "polyps: resize all to this width and height in pixels (default: their own); the same for all sets of one model"
    p.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help=sides)
    copies = "vessels: the training cases once per corruption instead, to choose settings on (never to train on)"
    masks = "stare, chase_db1: a folder of field-of-view masks, named as the images are (default: found from the image)"
    p.add_argument("--fov-masks", type=Path, metavar="FOLDER", help=masks)
    p.add_argument("--corruptions", action="store_true", default=None, help=copies)
    organs = "abdomen: liver = one label, tumours inside it included (default); all = what the set has"
    p.add_argument("--labels", choices=["liver", "all"], help=organs)
    p.add_argument("--sequence", choices=["t1", "t2spir"], help="chaos_mr: T1 in phase (default) or T2-SPIR")
    scores = "CT: modality = nnU-Net's CT scheme (default); zscore = as for MR, for models that have to read both"
    p.add_argument("--normalisation", choices=["modality", "zscore"], help=scores)
    rest = "leave out the cases that lack a file, and say so; no other case changes its part of the split"
    p.add_argument("--allow-missing", action="store_true", default=None, help=rest)
    p.add_argument("--verify", action="store_true", help="read everything back and check it, as `nnunet-kd verify` does")
    p.add_argument("--overwrite", action="store_true", help="replace an existing dataset of that id")
    p.set_defaults(run=_convert)


def _convert(o: argparse.Namespace) -> None:
    import inspect

    from nnunet_kd.datasets import CONVERTERS

    if o.name not in CONVERTERS:
        raise KDError(f'unknown data set "{o.name}": known are {", ".join(CONVERTERS)}')
    accepted = {name: inspect.signature(converter).parameters for name, converter in CONVERTERS.items()}
    choices = (
        "channels",
        "fov_width",
        "size",
        "observer",
        "split",
        "corruptions",
        "labels",
        "sequence",
        "normalisation",
        "fov_masks",
        "allow_missing",
    )
    given = {k: value for k in choices if (value := getattr(o, k)) is not None}
    for option in given:
        if option not in accepted[o.name]:
            sets = [name for name in CONVERTERS if option in accepted[name]]
            named = " and ".join(filter(None, [", ".join(sets[:-1]), sets[-1]]))
            raise KDError(f"--{option.replace('_', '-')} is for {named} only, {o.name} has none: leave it out")
    if given.get("fov_width") == 0:
        given["fov_width"] = None
    if "size" in given:
        given["size"] = tuple(given["size"])
    if given.get("observer", "").isdigit():
        given["observer"] = int(given["observer"])
    raw, preprocessed = nnunet_folder("nnUNet_raw"), nnunet_folder("nnUNet_preprocessed")
    report = CONVERTERS[o.name](o.source, raw, preprocessed, o.dataset_id, overwrite=o.overwrite, **given)
    print(report.text())
    if o.verify:
        _print_verification(report.folder)


def add_verify(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd verify`."""
    p = commands.add_parser("verify", help="check a raw dataset: counts, sizes, labels, geometry, duplicates; a picture of it")
    p.add_argument("dataset_id", type=int, metavar="DATASET_ID", help="nnU-Net dataset id, 1 to 999")
    p.set_defaults(run=lambda o: _print_verification(_raw_dataset(o.dataset_id)))


def _raw_dataset(dataset_id: int) -> Path:
    raw = nnunet_folder("nnUNet_raw")
    folders = sorted(raw.glob(f"Dataset{dataset_id:03d}_*"))
    if len(folders) != 1:
        state = f"{len(folders)} datasets" if folders else "no dataset"
        raise KDError(f"{raw} holds {state} of id {dataset_id}: correct the id or nnUNet_raw")
    return folders[0]


def _print_verification(folder: Path) -> None:
    from nnunet_kd.datasets.verify import verify_dataset

    verification = verify_dataset(folder)
    print(verification.text())
    if verification.problems:
        raise KDError(
            f"{folder.name} has {len(verification.problems)} problem(s), listed above: mend the source and convert again"
        )


def add_synth(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd synth`."""
    p = commands.add_parser("synth", help="built-in domains as nnU-Net datasets: a source and unseen ones")
    p.add_argument("name", choices=["vessels", "abdomen"], help="2-D vessel trees, or 3-D abdomens (CT- and MR-like)")
    p.add_argument("--dataset-id", type=int, required=True, help="id of the source; the other domains take the next ones")
    p.add_argument("--seed", type=int, default=0, help="default: 0")
    counts = "cases of the source to train on and to test on, and of each other domain (default: 24 8 8, abdomen 16 6 6)"
    p.add_argument("--cases", type=int, nargs=3, metavar=("TRAIN", "TEST", "UNSEEN"), help=counts)
    p.add_argument("--overwrite", action="store_true", help="replace existing datasets of these ids")
    p.set_defaults(run=_synth)


def _synth(o: argparse.Namespace) -> None:
    from nnunet_kd.datasets.synthetic import abdomen as synthetic_abdomen
    from nnunet_kd.datasets.synthetic import vessels as synthetic_vessels

    generate = {"vessels": synthetic_vessels.generate, "abdomen": synthetic_abdomen.generate}[o.name]
    counts = dict(zip(("n_train", "n_test", "n_unseen"), o.cases or (), strict=bool(o.cases)))
    raw, preprocessed = nnunet_folder("nnUNet_raw"), nnunet_folder("nnUNet_preprocessed")
    names = generate(raw, preprocessed, o.dataset_id, o.seed, overwrite=o.overwrite, **counts)
    for i, name in enumerate(names.values()):
        print(f"{name}: {'unseen, all in imagesTr' if i else 'the source, to train on (imagesTr) and to test on (imagesTs)'}")
    print(f"in {raw}; look at them with nnunet-kd verify {o.dataset_id}")
