"""What a method's network costs: FLOPs, counted on its kept model, and the CPU seconds per case measured at its predictions."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from nnunet_kd.comparison.analysis.groups import Group
from nnunet_kd.comparison.settings import CompareSettings
from nnunet_kd.utils.errors import KDError

KEPT = "compare.json"  # beside an exported model's plans


@dataclass(frozen=True)
class NetworkCost:
    """FLOPs of one forward of one training patch (a multiply-add is two); CPU seconds of one case, file to file."""

    flops: int | None = None
    cpu_seconds_per_case: float | None = None


def network_costs(settings: CompareSettings, groups: Sequence[Group]) -> list[NetworkCost]:
    """One entry per group. What no kept model tells is None."""
    counted: dict[str, int | None] = {}
    costs = []
    for group in groups:
        kept = list(kept_models(settings, group))
        flops = _flops(kept[0][0], counted) if kept else None
        # a case of any domain: the domains of one comparison have images of about one size
        seconds = [s for _, content, _ in kept for s in content.get("cpu_seconds_per_case", {}).values()]
        costs.append(NetworkCost(flops, statistics.median(seconds) if seconds else None))
    return costs


def kept_models(settings: CompareSettings, group: Group) -> Iterator[tuple[Path, dict, tuple[int, int]]]:
    """The exported models of a group's trainings that are there: folder, compare.json, (seed, fold). Lowest seed first."""
    for seed, fold in group.trainings:
        for folder in _folders(settings, group, seed, fold):
            content = _read(folder)
            if content is None or not (folder / f"fold_{fold}" / "checkpoint_final.pth").is_file():
                continue
            if (content.get("method"), content.get("seed")) == (group.method, seed) and content.get(
                "config_hash"
            ) in group.hashes:
                yield folder, content, (seed, fold)
                break


def _folders(settings: CompareSettings, group: Group, seed: int, fold: int) -> list[Path]:
    place = settings.models / group.source if settings.sources else settings.models
    # the features are in the name, but only the plans know them
    names = [f"_seed{seed}_fold{fold}"] * (settings.folds is not None and fold > 0) or [f"_seed{seed}"]
    return [f for name in names for f in sorted(place.glob(f"{escape(group.method)}_*{name}"))] if place.is_dir() else []


def _read(folder: Path) -> dict | None:
    try:
        return json.loads((folder / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _flops(folder: Path, counted: dict[str, int | None]) -> int | None:
    """Networks of one architecture are counted once."""
    from nnunet_kd.networks.cost import count_flops
    from nnunet_kd.nnunet_io.configurations import resolved_configuration
    from nnunet_kd.nnunet_io.model_folder import build_network, read_model_folder

    try:
        model = read_model_folder(folder)
        configuration = resolved_configuration(model.plans, model.configuration)
        key = json.dumps([configuration["architecture"], configuration["patch_size"]], sort_keys=True)
        if key not in counted:
            with contextlib.redirect_stdout(io.StringIO()):
                counted[key] = count_flops(build_network(model), configuration["patch_size"])
        return counted[key]
    except KDError:  # a damaged folder costs its number, not the table
        return None
