"""Does a model segment better, or does it only say "foreground" more readily?

    python scripts/dice_by_offset.py FOLDER [FOLDER ...] --source NAME=801:Tr --domain NAME=ID[:Tr|:Ts[:GLOB]] ... -o FILE.json

For models of one foreground label: Dice with the foreground's logit raised by each of 17 offsets from -2 to 2 (0: as nnU-Net
decides). The table gives per model and domain the Dice at 0, at the offset with the highest mean Dice on the source's cases
(chosen for each model, with annotations of the source alone), and at the best of the domain's own, which no one knows in
practice. Models whose folders differ in `_seedN` only are averaged, each with its own offset. Dice inside the field of view,
mean over cases, nnU-Net's sliding window with mirroring.

With `--levels 0.79 0.795` a second table: the highest Dice on the other domains that an offset gives as long as the first
domain's Dice (its home) stays at or above the level. Methods that differ in their working point only are level there.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_kd.evaluation.domains import Domain, parse_domain, read_label
from nnunet_kd.evaluation.offsets import CaseLogits, dice_curves
from nnunet_kd.evaluation.predict import load_predictor, predict_domain
from nnunet_kd.nnunet_io.model_folder import ModelFolder, read_model_folder
from nnunet_kd.utils.environment import nnunet_folder
from nnunet_kd.utils.errors import KDError
from nnunet_kd.utils.files import write_json
from nnunet_kd.utils.tables import markdown_table

CHECKPOINT = "checkpoint_final.pth"
OFFSETS = np.arange(-2.0, 2.01, 0.25)

Curves = dict[str, list[float]]  # case -> Dice per offset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="model folders; the folder's name names the model")
    parser.add_argument("--source", required=True, help="where the offset is chosen")
    parser.add_argument("--domain", action="append", required=True, dest="domains", help="where Dice is reported; repeat")
    parser.add_argument("-f", "--folds", nargs="+", help="default: all that are trained, averaged")
    parser.add_argument("--levels", nargs="+", type=float, metavar="DICE", help="Dice to keep on the first domain")
    parser.add_argument("-o", "--output", type=Path, required=True, help="all numbers, as JSON; models in it are not run again")
    o = parser.parse_args()
    try:
        raw = nnunet_folder("nnUNet_raw")
        domains = [parse_domain(spec, raw) for spec in (o.source, *o.domains)]
        kept = _kept(o.output)
        bar = tqdm([(m, d) for m in o.models for d in domains if d.name not in kept.get(m.name, {})], desc="models x domains")
        for folder, domain in bar:
            kept.setdefault(folder.name, {})[domain.name] = curves(folder, domain, o.folds)
            write_json(o.output, {"offsets": OFFSETS.tolist(), "models": kept})
    except KDError as error:
        raise SystemExit(f"error: {error}") from None
    models, names = {m.name: kept[m.name] for m in o.models}, [d.name for d in domains[1:]]
    print(table(models, domains[0].name, names))
    if o.levels:
        print("\n" + table_by_level(models, names[0], names[1:], o.levels))


def curves(folder: Path, domain: Domain, folds: Sequence[str] | None = None) -> Curves:
    """Dice of a model at all offsets on every case of a domain that has an annotated pixel.

    Raises KDError if the model has other labels than one foreground label, or cannot be read.
    """
    model = read_binary_model(folder)
    predictor = load_predictor(folder, tuple(folds or model.trained_folds(CHECKPOINT)), CHECKPOINT)
    found = {}

    def see(case: str, logits: CaseLogits) -> None:
        found[case] = dice_curves(predictor, domain, case, logits, [1], None, offsets=OFFSETS)["1"].tolist()

    with tempfile.TemporaryDirectory() as scratch:
        predict_domain(predictor, domain, Path(scratch), f"{folder.name} on {domain.name}", see=see)
    with_truth = {c: v for c, v in found.items() if read_label(domain, c).any()}
    if not with_truth:
        raise KDError(f"domain {domain.name}: no case has an annotated pixel, so there is no Dice")
    return with_truth


def read_binary_model(folder: Path) -> ModelFolder:
    """A model folder of one foreground label; KDError for others."""
    model = read_model_folder(folder)
    labels = {k: v for k, v in model.dataset_json["labels"].items() if k != "background"}
    if list(labels.values()) != [1]:
        raise KDError(f"{folder}: an offset has a meaning for one foreground label only, the model has {labels}")
    return model


def table(models: Mapping[str, Mapping[str, Curves]], source: str, domains: Sequence[str]) -> str:
    """Markdown: Dice at offset 0 / at the source's offset / at the domain's best, mean over the seeds of a method."""
    rows = [["model", "seeds", "offset by the source", *domains]]
    for method, names in methods_of(models).items():
        chosen = [int(_mean(models[n][source]).argmax()) for n in names]
        cells = []
        for domain in domains:
            means = [_mean(models[n][domain]) for n in names]
            zero = np.mean([m[len(OFFSETS) // 2] for m in means])
            at = np.mean([m[i] for m, i in zip(means, chosen, strict=True)])
            cells.append(f"{zero:.4f} / {at:.4f} / {np.mean(means, 0).max():.4f}")
        offsets = ", ".join(f"{OFFSETS[i]:+.2f}" for i in chosen)
        rows.append([method, str(len(names)), offsets, *cells])
    return markdown_table(rows)


def table_by_level(
    models: Mapping[str, Mapping[str, Curves]], home: str, others: Sequence[str], levels: Sequence[float]
) -> str:
    """Markdown: the highest Dice on the other domains at offsets that keep home's Dice, both as means over the seeds."""
    rows = [["model", f"best on {home}", *(f"{other}, {home} at least {level:g}" for other in others for level in levels)]]
    for method, names in methods_of(models).items():
        dice = {domain: _fine(np.mean([_mean(models[n][domain]) for n in names], axis=0)) for domain in (home, *others)}
        reached = [dice[other][dice[home] >= level] for other in others for level in levels]
        cells = [f"{values.max():.4f}" if len(values) else "never" for values in reached]
        rows.append([method, f"{dice[home].max():.4f}", *cells])
    return markdown_table(rows)


def methods_of(models: Iterable[str]) -> dict[str, list[str]]:
    """Names of the models of every method: those that differ in the seed only."""
    methods: dict[str, list[str]] = {}
    for name in models:
        methods.setdefault(re.sub(r"_seed\d+$", "", name), []).append(name)
    return methods


def _fine(curve: np.ndarray) -> np.ndarray:
    """A curve over the offsets, with straight lines between them."""
    return np.interp(np.linspace(OFFSETS[0], OFFSETS[-1], 1601), OFFSETS, curve)


def _mean(curves: Curves) -> np.ndarray:
    return np.mean(list(curves.values()), axis=0)


def _kept(file: Path) -> dict[str, dict[str, Curves]]:
    if not file.is_file():
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept.get("offsets") != OFFSETS.tolist():
        raise KDError(f"{file} is of other offsets: name another file with -o")
    return kept["models"]


if __name__ == "__main__":
    main()
