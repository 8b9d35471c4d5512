"""A family of synthetic domains as nnU-Net datasets: a source to train on and to test on, and unseen domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_kd.datasets.nnunet_format import (
    dataset_folder,
    folds_by_group,
    free_dataset_folder,
    new_dataset_folder,
    write_dataset_json,
    write_splits,
)
from nnunet_kd.utils.files import write_json
from nnunet_kd.utils.progress import progress

N_FOLDS = 4


def write_domains(
    raw: str | Path,
    preprocessed: str | Path,
    first_id: int,
    domains: Mapping[str, Any],
    counts: tuple[int, int, int],
    write: Callable[[Path, str, str, Any, tuple[int, int, int]], None],
    overwrite: bool,
    settings: Mapping[str, int],
    known: Mapping[str, Any],
) -> dict[str, str]:
    """Write every domain as a dataset, with ids first_id, first_id + 1, ... in the order of `domains`.

    domains: dataclasses with a `name`; the first is the source. counts: its cases in imagesTr and in imagesTs (it gets a
    `splits_final.json` of four folds), and those of every other domain, all in imagesTr. write(folder, tag, case, domain,
    numbers) draws and writes one case; numbers are those of the domain, the part and the case, for its seed. settings: for
    synthetic.json, "seed" among them. known: for dataset.json, see `write_dataset_json`. Returns key -> dataset name.
    Raises KDError if an id is taken, or a dataset exists and `overwrite` is False.
    """
    names = {}
    for i, (key, domain) in enumerate(domains.items()):  # everything is checked before the first case is drawn
        names[key] = free_dataset_folder(raw, first_id + i, domain.name, overwrite).name
        dataset_folder(preprocessed, first_id + i, domain.name)
    for i, (key, domain) in enumerate(domains.items()):
        parts = {"Tr": counts[2]} if i else {"Tr": counts[0], "Ts": counts[1]}
        about = {**known, "description": f"{known['description']}, domain {key!r}, seed {settings['seed']}"}
        with new_dataset_folder(raw, first_id + i, domain.name, overwrite) as folder:
            cases = []
            for p, (tag, n) in enumerate(parts.items()):
                for k in progress(range(n), f"{names[key]} {tag}"):
                    case = f"{domain.name}_{'test_' if tag == 'Ts' else ''}{k:03d}"
                    write(folder, tag, case, domain, (i, p, k))
                    cases += [case] if tag == "Tr" else []
            licence = "generated, free of rights"
            write_dataset_json(folder, num_training=len(cases), name=names[key], licence=licence, **about)
            write_json(folder / "synthetic.json", {**settings, "domain": asdict(domain)})
            if not i:
                write_splits(preprocessed, names[key], folds_by_group({c: [c] for c in cases}, N_FOLDS), overwrite)
    return names
