"""evaluate, metrics, fsd: how good a model is. Imports happen inside the functions, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_kd.utils.errors import KDError, first_line


def _add_evaluation_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("-f", "--fold", default="0", help="default: 0")
    p.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: checkpoint_final.pth")
    p.add_argument("--bootstrap", type=_samples, default=200, help="bootstrap and permutation samples for FSD (default: 200)")


def _samples(text: str) -> int:
    if not text.isdigit() or int(text) < 10:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 10")
    return int(text)


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd evaluate`."""
    p = commands.add_parser("evaluate", help="models x domains: metrics, FSD, a report")
    p.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER", help="repeat; teacher first")
    p.add_argument(
        "--domain",
        action="append",
        required=True,
        metavar="NAME=ID[:Tr|:Ts[:GLOB]]",
        help="repeat; the first is the home domain, the others are unseen. Or NAME=IMAGES,LABELS[,FOV]",
    )
    p.add_argument("-o", "--out", type=Path, required=True, help="folder for report.html, report.json, report.csv")
    p.add_argument("--title", default="Teacher and students at home and on unseen domains")
    p.add_argument("-device", "--device", default="cpu", choices=["cpu", "cuda"], help="default: cpu")
    p.add_argument("--auc", action="store_true", help="area under the ROC curve too (predicts with probabilities)")
    p.add_argument("--tolerance", type=_distance, default=1.0, help="of the surface Dice, in mm, or pixels (default: 1)")
    distances = "FSD of models trained with MSANs (own, the default), of all, with fitted ones (fit), or none"
    p.add_argument("--fsd", choices=["own", "fit", "none"], default="own", help=distances)
    p.add_argument("-np", type=_workers, default=1, metavar="N", help="processes that measure (default: 1)")
    _add_evaluation_options(p)
    p.set_defaults(run=_evaluate)


def _evaluate(o: argparse.Namespace) -> None:
    import os

    from nnunet_kd.evaluation.domains import parse_domain
    from nnunet_kd.evaluation.evaluate import EvaluationRequest, Model, evaluate
    from nnunet_kd.evaluation.report.report import print_table, write_report
    from nnunet_kd.nnunet_io.model_folder import resolve_folder

    models = []
    for text in o.model:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise KDError(f'--model "{text}" must read NAME=FOLDER')
        models.append(Model(name, resolve_folder(folder)))
    domains = [parse_domain(d, Path(os.environ.get("nnUNet_raw", "."))) for d in o.domain]
    report = evaluate(
        EvaluationRequest(
            models,
            domains,
            o.out,
            o.fold,
            o.checkpoint,
            o.device,
            o.title,
            [o.command_line],
            bootstrap=o.bootstrap,
            distances=o.fsd,
            auc=o.auc,
            tolerance=o.tolerance,
            workers=o.np,
        )
    )
    page = write_report(report, o.out, o.title, domains)
    print(print_table(report))
    print(f"report: {page}")


def add_metrics(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd metrics`."""
    p = commands.add_parser("metrics", help="label maps against references, as nnU-Net's summary.json with more keys")
    p.add_argument(
        "-pred", "--predictions", type=Path, required=True, metavar="FOLDER", help="label maps; CASE.npz give the AUC"
    )
    p.add_argument("-ref", "--references", type=Path, required=True, metavar="FOLDER", help="annotations of the same names")
    p.add_argument("-djfile", type=Path, required=True, metavar="FILE", help="the data set's dataset.json")
    p.add_argument("--fov", type=Path, metavar="FOLDER", help="fields of view of the same names: what is 0 does not count")
    p.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: summary.json beside the predictions")
    p.add_argument("--tolerance", type=_distance, default=1.0, help="of the surface Dice, in mm, or pixels (default: 1)")
    p.add_argument("--cldice-3d", action="store_true", help="clDice of volumes too (slow)")
    p.add_argument("--chill", action="store_true", help="leave out references without a prediction")
    p.add_argument("-np", type=_workers, default=1, metavar="N", help="processes, each with one case in memory (default: 1)")
    p.set_defaults(run=_metrics)


def _metrics(o: argparse.Namespace) -> None:
    from nnunet_kd.evaluation.metrics.summary import measure_folders, write_summary

    measured, content = measure_folders(o.predictions, o.references, o.djfile, o.fov, o.tolerance, o.cldice_3d, o.chill, o.np)
    out = o.out or o.predictions / "summary.json"
    write_summary(content, out)
    unit, means = content["nnunet_kd"]["distance_unit"], content["foreground_mean"]
    shown = [k for k in ("Dice", "IoU", "HD95", "ASSD", "NSD", "clDice", "Sensitivity", "Specificity", "AUC") if k in means]
    print(f"{len(measured.cases)} cases, {content['nnunet_kd']['failures']} failed, distances in {unit}")
    print("mean    " + ", ".join(f"{k} {means[k]:.4f}" for k in shown))
    print("pooled  " + ", ".join(f"{k} {v:.4f}" for k, v in measured.pooled.items()))
    print(f"wrote {out}")


def _distance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a distance of at least 0")
    return value


def _workers(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def add_fsd(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd fsd`."""
    p = commands.add_parser("fsd", help="Frechet Semantic Distance of models between domains")
    p.add_argument("--model", action="append", required=True, metavar="[NAME=]FOLDER", help="repeat; any nnU-Net model folder")
    p.add_argument("--source", required=True, metavar="NAME=ID[:Tr|:Ts[:GLOB]]", help="held-out cases of the home domain")
    p.add_argument("--target", action="append", required=True, metavar="NAME=ID[...]", help="repeat; unseen domains")
    msan = "MSANs of the training, or fitted to every model alike (default: own if all have comparable ones, else fit)"
    p.add_argument("--msan", choices=["auto", "own", "fit"], default="auto", help=msan)
    p.add_argument(
        "--preset",
        help="whose MSAN and ACT settings are fitted (default: of the first model with MSANs, or kd+adjusted+mirrored)",
    )
    p.add_argument("--fit-steps", type=_workers, default=600, metavar="N", help="training steps of a fit (default: 600)")
    p.add_argument("--seed", type=int, default=0, help="of the fit, the halves and the resampling (default: 0)")
    p.add_argument("--networks", nargs="+", choices=["student", "teacher"], default=["student", "teacher"])
    p.add_argument("--teacher", metavar="NAME", help="with fitted MSANs: the model to compare the others with on every domain")
    p.add_argument("-o", "--out", type=Path, metavar="FILE.json", help="the result; pictures, vectors and MSANs beside it")
    _add_evaluation_options(p)
    p.set_defaults(run=_fsd)


def _fsd(o: argparse.Namespace) -> None:
    import json
    import os
    import sys

    from nnunet_kd.evaluation.domains import parse_domain
    from nnunet_kd.evaluation.fsd.compare import RunsRequest, check_domains, compare_models, prepare_runs
    from nnunet_kd.evaluation.fsd.vector_files import save_vectors
    from nnunet_kd.evaluation.report.figures import fsd_bars
    from nnunet_kd.evaluation.report.report import json_ready
    from nnunet_kd.evaluation.report.vector_map import vector_map
    from nnunet_kd.nnunet_io.model_folder import resolve_folder
    from nnunet_kd.nnunet_io.trained_fold import OpenedFolds
    from nnunet_kd.utils.files import write_json

    models: dict[str, Path] = {}
    for text in o.model:
        name, equals, place = text.partition("=")
        folder = resolve_folder(place if equals else text)
        name = name if equals else folder.name
        if not name or "/" in name or name in models:
            raise KDError(f'--model "{text}" must read FOLDER or NAME=FOLDER, each name once and without "/"')
        models[name] = folder
    raw = Path(os.environ.get("nnUNet_raw", "."))
    # vectors come from images alone
    source, *targets = (parse_domain(d, raw, labelled=False) for d in (o.source, *o.target))
    check_domains(source, targets)
    result_stem = o.out.with_suffix("") if o.out else None
    cache = result_stem.with_name(f"{result_stem.name}_msan") if result_stem else None
    request = RunsRequest(o.msan, o.preset, o.fit_steps, o.seed, tuple(o.networks), cache)
    opened = OpenedFolds()
    folds = {name: opened.open(folder, o.fold, o.checkpoint) for name, folder in models.items()}
    runs = prepare_runs(folds, request, opened.open)
    semantics = compare_models(runs, source, targets, tuple(o.networks), o.bootstrap, o.seed, teacher=o.teacher)
    for row in semantics.rows:
        low, high = row["kernel_interval"]
        model = f"{row['model']} " if len(models) > 1 else ""
        print(
            f"{model}{row['network']:8} {row['source']} -> {row['target']}: FSD {row['fsd']:.3f}, "
            f"relative {row['relative']:.3f},"
        )
        print(
            f"         extrapolated {row['fsd_extrapolated']:.3f}, kernel {row['kernel']:.4f} [{low:.4f}, {high:.4f}], "
            f"p {row['p_value']:.3f}, vectors {row['n_a']} and {row['n_b']} of {row['dim']} numbers"
        )
        for warning in row["warnings"]:
            print(f"         warning: {warning}")
    result = json_ready({"fsd": semantics.rows, "msan": semantics.msans, "seed": o.seed, "command": o.command_line})
    if o.out:
        write_json(o.out, result)  # before the pictures, which may fail
        save_vectors(semantics.samples, result_stem.with_name(f"{result_stem.name}_vectors"))
        for picture, draw in (
            (f"{result_stem.name}_vectors.png", lambda file: vector_map(semantics.samples, file, seed=o.seed)),
            (f"{result_stem.name}.png", lambda file: fsd_bars(semantics.rows, file)),
        ):
            try:
                draw(result_stem.with_name(picture))
            except Exception as error:  # matplotlib raises all kinds
                print(f"nnunet-kd: warning: the picture {picture} is left out: {first_line(error)}", file=sys.stderr)
    print(json.dumps(result))
