"""The command: `python -m runner -i IMAGES -o OUT` in a model folder, `nnunet-kd predict -m MODEL ...` with nnunet_kd."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .errors import RunnerError


def add_arguments(parser: argparse.ArgumentParser, model: Path | None = None) -> None:
    """The command's options. `model`: what -m is if it is not given; without it, -m has to be."""
    text = "model folder with model.json, or one .onnx file in it (this fold alone)"
    parser.add_argument("-m", "--model", type=Path, default=model, required=model is None, help=text)
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder of images CASE_0000, CASE_0001, ... by channel")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the segmentations")
    parser.add_argument("--backend", choices=["onnxruntime", "openvino"], default="onnxruntime", help="default: onnxruntime")
    text = "default: f32; bf16: OpenVINO on CPUs that have it; int8: if it was exported"
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], default="f32", help=text)
    text = "do not average over mirrored copies: 4 times as fast in 2-D, 8 times in 3-D, a little less accurate"
    parser.add_argument("--no-mirroring", action="store_true", help=text)
    parser.add_argument("--tile-step", type=float, help="distance of tiles in patches (default: 0.5, as nnU-Net)")
    parser.add_argument("--threads", type=int, help="default: all CPUs")
    text = "GB of one array before it goes to a temporary file (default: 2)"
    parser.add_argument("--memory", type=float, default=2.0, metavar="GB", help=text)
    parser.add_argument("--save-probabilities", action="store_true", help="also CASE.npz with the probabilities, as nnU-Net's")


def run(options: argparse.Namespace) -> None:
    """Predict. Raises RunnerError."""
    if options.threads is not None:
        if options.threads < 1:
            raise RunnerError(f"--threads {options.threads} must be at least 1")
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # numpy reads them when it is loaded
            os.environ[variable] = str(options.threads)
    from .predictor import Predictor

    predictor = Predictor(
        options.model,
        options.backend,
        options.precision,
        not options.no_mirroring,
        options.threads,
        options.memory * 1e9,
        options.tile_step,
    )
    written = predictor.predict_folder(options.input, options.out, options.save_probabilities)
    print(f"wrote {len(written)} segmentation{'s' * (len(written) != 1)} to {options.out}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command of a model folder. Returns the exit code; an error is one line on stderr and 2."""
    model_folder = Path(__file__).resolve().parent.parent
    text = "Predict with this model. Needs no torch, no nnU-Net."
    parser = argparse.ArgumentParser(prog="python -m runner", description=text)
    add_arguments(parser, model_folder if (model_folder / "model.json").is_file() else None)
    try:
        run(parser.parse_args(arguments))
    except RunnerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed: pip install -r {model_folder / 'runner' / 'requirements.txt'}",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
