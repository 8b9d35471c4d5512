"""compare and demo: many trainings in one command. Imports happen inside the functions, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_kd.utils.errors import KDError


def add_compare(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd compare`."""
    p = commands.add_parser("compare", help="methods x seeds into one CSV; does only what is missing; tables, a report")
    p.add_argument("file", type=Path, metavar="FILE.yaml", help="what to compare (docs/compare.md)")
    p.add_argument("--jobs", type=int, metavar="N", help="workers that share the runs (default: 1)")
    p.add_argument("--dry-run", action="store_true", help="list what is done and what is missing; with --slurm the jobs")
    p.add_argument("--slurm", action="store_true", help="a job per missing run on a Slurm cluster (the file's section slurm)")
    again = "predict again, with the kept models, the cases whose rows are from before the CSV's newer columns; trains nothing"
    p.add_argument("--remeasure", action="store_true", help=again)
    p.add_argument("--table", action="store_true", help="print the CSV as Markdown tables")
    p.add_argument("--latex", action="store_true", help="with --table: LaTeX (booktabs)")
    p.add_argument("--csv", action="store_true", help="with --table: one CSV row per method and domain, with every number")
    p.add_argument("--report", type=Path, metavar="OUT.html", help="write one self-contained HTML page")
    reference = "with --table or --report: differences of all methods from this one (report: default the undistilled student)"
    p.add_argument("--against", metavar="METHOD", help=reference)
    p.add_argument("--methods", nargs="+", metavar="METHOD", help="with --table or --report: these only")
    pictures = "with --report: cases as pictures of these domains (default: the first at home; none: no pictures)"
    p.add_argument("--overlays", nargs="+", metavar="DOMAIN", help=pictures)
    p.add_argument(
        "--fsd", action="append", metavar="METHOD=FILE", help="with --report: a result of `nnunet-kd fsd -o`; repeat"
    )
    p.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of --jobs
    p.set_defaults(run=_compare)


def _compare(o: argparse.Namespace) -> None:
    from nnunet_kd.comparison.checked_settings import read_settings

    for option, needs in (
        ("against", "table or report"),
        ("methods", "table or report"),
        ("latex", "table"),
        ("csv", "table"),
        ("overlays", "report"),
        ("fsd", "report"),
    ):
        if getattr(o, option) and not any(getattr(o, n) for n in needs.split(" or ")):
            wanted = needs.replace(" or ", " or --")
            raise KDError(f"--{option} is for --{wanted}: add it, or leave --{option} out")
    if o.jobs is not None and o.jobs < 1:
        raise KDError(f"--jobs {o.jobs} must be at least 1")
    kinds = {
        "--jobs": o.jobs is not None,
        "--dry-run": o.dry_run,
        "--slurm": o.slurm,
        "--remeasure": o.remeasure,
        "--table": o.table,
        "--report": o.report,
    }
    given = [k for k, v in kinds.items() if v]
    if len(given) > 1 and given not in (["--dry-run", "--slurm"], ["--dry-run", "--remeasure"]):
        raise KDError(f"{' and '.join(given)} exclude each other: keep one")
    if o.latex and o.csv:
        raise KDError("--latex and --csv exclude each other: keep one")
    settings = read_settings(o.file)
    if o.table:
        from nnunet_kd.comparison.report.tables import table

        print(table(settings, o.against, "latex" if o.latex else "csv" if o.csv else "markdown", o.methods))
    elif o.report:
        from nnunet_kd.comparison.report.page import write_comparison

        page = write_comparison(settings, o.report, o.against, o.methods, o.overlays, o.fsd or (), [o.command_line])
        print(f"report: {page}")
    elif o.slurm:
        from nnunet_kd.comparison.running.slurm import submit

        submit(settings, o.dry_run)
    elif o.remeasure:
        from nnunet_kd.comparison.running.loop import remeasure

        remeasure(settings, o.dry_run)
    else:
        from nnunet_kd.comparison.running.loop import compare

        compare(settings, o.dry_run, o.jobs or 1, o.worker)


def add_demo(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd demo`."""
    p = commands.add_parser("demo", help="the main job on built-in data, in about ten minutes on two CPU cores")
    p.add_argument("--seed", type=int, default=0, help="default: 0")
    p.add_argument("-o", "--out", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    p.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs (about 3 minutes)")
    p.set_defaults(run=_demo)


def _demo(o: argparse.Namespace) -> None:
    from nnunet_kd.cli.demo import run_demo

    run_demo(o.out, o.seed, o.quick)
