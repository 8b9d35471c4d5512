"""On which images does a model say "foreground" more readily than another, and by how much?

    python scripts/readier_where.py FOLDER [FOLDER ...] --reference FOLDER [FOLDER ...] --source NAME=801:Tr
        [--domain NAME=ID[:Tr|:Ts[:GLOB]] ...] [--views strong] [--patches 12] -o FILE.json

Each model is compared with the reference of its own `_seedN` on the same patches: of the source's images, of these under a
preset of views and under each of its operations alone, and of the other domains. The number is the offset that the reference's
logit of foreground needs to mark as many pixels as the model does; 0: as ready. It needs no annotation. A logit adjustment of
views (docs/methods.md) that the student has learned to tell from images stands in the rows of the views alone; one that it has
not stands everywhere. For models of one foreground label. Means over the seeds, with each seed's number behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from dice_by_offset import CHECKPOINT, methods_of, read_binary_model
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunet_kd.augmentation.views import VIEW_PRESETS, Views, list_presets
from nnunet_kd.evaluation.domains import Domain, parse_domain
from nnunet_kd.evaluation.predict import check_images, image_files, load_predictor
from nnunet_kd.utils.environment import nnunet_folder
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json
from nnunet_kd.utils.tables import markdown_table

_SEED = re.compile(r"_seed(\d+)$")
_AT_ONCE = 16  # patches in one forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders; the folder's name names the model")
    parser.add_argument(
        "--reference", required=True, nargs="+", type=Path, help="one model folder for every seed of the models"
    )
    parser.add_argument("--source", required=True, help="whose images the views are drawn of")
    parser.add_argument("--domain", action="append", default=[], dest="domains", help="other images; repeat")
    parser.add_argument("--views", default="strong", choices=list_presets())
    parser.add_argument("--patches", type=int, default=12, help="of every image")
    parser.add_argument("--seed", type=int, default=0, help="of the patches' places and of the views")
    parser.add_argument("-f", "--fold", default="0")
    parser.add_argument("-o", "--output", type=Path, required=True, help="all numbers, as JSON")
    o = parser.parse_args()
    try:
        references = {seed_of(folder): folder for folder in o.reference}
        missing = [m.name for m in o.models if seed_of(m) not in references]
        if missing:
            raise KDError(f"no --reference of the seed of {', '.join(missing)}: name a folder for every seed")
        raw = nnunet_folder("nnUNet_raw")
        domains = [parse_domain(spec, raw, labelled=False) for spec in (o.source, *o.domains)]
        predictors = {folder: _predictor(folder, o.fold, domains) for folder in {*o.models, *references.values()}}
        sets = _sets(predictors[o.reference[0]], domains, o.views, o.patches, o.seed)
        logits = {
            folder: {name: foreground_logits(p.network, patches) for name, patches in sets.items()}
            for folder, p in tqdm(predictors.items(), desc="models")
        }
    except KDError as error:
        raise SystemExit(f"error: {error}") from None
    found = {
        m.name: {name: offset_between(logits[references[seed_of(m)]][name], z) for name, z in logits[m].items()}
        for m in o.models
    }
    write_json(o.output, found)
    print(table(found))


def seed_of(folder: Path) -> str:
    """The N of a folder's `_seedN`; empty without one."""
    match = _SEED.search(folder.name)
    return match[1] if match else ""


def offset_between(reference: np.ndarray, model: np.ndarray) -> float:
    """What to add to the reference's logits `(n,)` so that as many are above 0 as of the model's `(n,)`."""
    marked = int((model > 0).sum())
    if marked == 0 or marked == len(model):
        return float("nan")  # any number from somewhere on
    falling = np.sort(reference)[::-1]
    return float(-(falling[marked - 1] + falling[marked]) / 2)


def foreground_logits(network: torch.nn.Module, patches: torch.Tensor) -> np.ndarray:
    """Foreground against background, of every pixel of ``patches`` `(n, C, *S)`: `(n * pixels,)`."""
    with torch.no_grad():
        out = torch.cat([network(part) for part in patches.split(_AT_ONCE)])
    return (out[:, 1] - out[:, 0]).flatten().float().numpy()


def view_sets(patches: torch.Tensor, preset: str, keep_zero: Sequence[bool], seed: int) -> dict[str, torch.Tensor]:
    """The patches under the preset, and under each of its operations alone, always applied."""
    alone = {step.function.__name__: (dataclasses.replace(step, probability=1.0),) for step in VIEW_PRESETS[preset]}
    with mock.patch.dict(VIEW_PRESETS, alone):
        return {name: Views(name, keep_zero)(patches, torch.Generator().manual_seed(seed)) for name in (preset, *alone)}


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each set of patches, a column for each method, mean over its seeds (each seed)."""
    methods = methods_of(found)
    rows = [["patches", *methods]]
    for patches in next(iter(found.values())):
        numbers = [[found[n][patches] for n in names] for names in methods.values()]
        rows.append([patches, *(f"{np.mean(n):+.2f} ({', '.join(f'{x:+.2f}' for x in n)})" for n in numbers)])
    return markdown_table(rows)


def _predictor(folder: Path, fold: str, domains: Sequence[Domain]) -> nnUNetPredictor:
    model = read_binary_model(folder)
    for domain in domains:
        check_images(domain, model.dataset_json)
    predictor = load_predictor(folder, (fold,), CHECKPOINT)
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    predictor.network.eval()
    return predictor


def _sets(predictor: nnUNetPredictor, domains: Sequence[Domain], views: str, count: int, seed: int) -> dict[str, torch.Tensor]:
    keep_zero = predictor.configuration_manager.use_mask_for_norm
    patches = {d.name: _patches(predictor, d, count, seed) for d in domains}
    source = domains[0].name
    drawn = {f"{source}, {name}": x for name, x in view_sets(patches[source], views, keep_zero, seed).items()}
    return {source: patches.pop(source), **drawn, **patches}


def _patches(predictor: nnUNetPredictor, domain: Domain, count: int, seed: int) -> torch.Tensor:
    """``count`` patches `(n, C, *S)` of every image, as the network would see them, at random places."""
    configuration, places = predictor.configuration_manager, np.random.default_rng(seed)
    size = configuration.patch_size
    preprocessor = configuration.preprocessor_class(verbose=False)
    reader = determine_reader_writer_from_dataset_json(predictor.dataset_json, verbose=False)()
    found = []
    for case in tqdm(domain.cases, desc=f"patches of {domain.name}"):
        image, properties = reader.read_images([str(f) for f in image_files(domain, case)])
        data = preprocessor.run_case_npy(
            image, None, properties, predictor.plans_manager, configuration, predictor.dataset_json
        )[0]
        data = torch.as_tensor(np.asarray(data)).float()
        for _ in range(count):
            # a slice of the volume, for 2-D configurations
            part = data[:, places.integers(data.shape[1])] if len(size) == 2 else data
            if any(n < s for n, s in zip(part.shape[1:], size, strict=True)):
                raise KDError(f"{domain.name}, {case}: the image {tuple(part.shape[1:])} is smaller than a patch {tuple(size)}")
            corner = [int(places.integers(n - s + 1)) for n, s in zip(part.shape[1:], size, strict=True)]
            found.append(part[(slice(None), *(slice(c, c + s) for c, s in zip(corner, size, strict=True)))])
    return torch.stack(found)


if __name__ == "__main__":
    main()
