"""The `nnunet-kd` command: parses and reports errors. The subcommands (beside it) import inside, so that --help is quick."""

from __future__ import annotations

import argparse
import shlex
import sys

from nnunet_kd import __version__
from nnunet_kd.cli import compare as comparing
from nnunet_kd.cli import data
from nnunet_kd.cli import deploy as deploying
from nnunet_kd.cli import evaluate as evaluating
from nnunet_kd.cli import plan as planning
from nnunet_kd.utils import progress
from nnunet_kd.utils.errors import KDError


class _Parser(argparse.ArgumentParser):
    """argparse with its errors in this program's form: one line that names the fix (subcommands inherit the class)."""

    def error(self, message: str) -> None:
        self.exit(2, f"nnunet-kd: error: {message}: see `{self.prog} --help`\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code; a user's mistake is one line on stderr and 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_args(arguments)
    options.command_line = shlex.join(["nnunet-kd", *arguments])
    progress.restart()
    try:
        options.run(options)
    except KDError as error:
        print(f"nnunet-kd: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"nnunet-kd: error: {error.strerror}: {error.filename}: choose another path or free this one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("nnunet-kd: stopped", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="nnunet-kd", description="Distil a trained nnU-Net into a light student.")
    parser.add_argument("--version", action="version", version=f"nnunet-kd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data.add_convert(commands)
    data.add_verify(commands)
    data.add_synth(commands)
    planning.add_plan(commands)
    planning.add_trainers_path(commands)
    deploying.add_export(commands)
    deploying.add_predict(commands)
    evaluating.add_evaluate(commands)
    evaluating.add_metrics(commands)
    evaluating.add_fsd(commands)
    comparing.add_compare(commands)
    comparing.add_demo(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
