"""export and predict: what comes after a training. Imports happen inside the functions, so that --help is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_kd.utils.errors import KDError


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd export`."""
    p = commands.add_parser("export", help="a trained student as a stock nnU-Net model folder")
    p.add_argument("model", help="training folder TRAINER__PLANS__CONFIGURATION (relative to nnUNet_results or absolute)")
    p.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    p.add_argument("-f", "--folds", nargs="+", default=["0"], help="default: 0")
    p.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: checkpoint_final.pth")
    p.add_argument("--name", help="plans name of the exported model (default: made from the training's)")
    archive = "also OUT.zip, for nnUNetv2_install_pretrained_model_from_zip"
    p.add_argument("--zip", action="store_true", help=archive)
    text = "also ONNX files and a runner that predicts with them, without nnU-Net and torch (nnunet-kd predict)"
    p.add_argument("--onnx", action="store_true", help=text)
    p.add_argument("--openvino", action="store_true", help="also OpenVINO files, faster on CPUs (with --onnx)")
    p.add_argument("--openvino-half", action="store_true", help="--openvino with weights in float16: half the file")
    text = "also an 8-bit OpenVINO network, with the Dice it costs on the folds' validation cases (needs nnUNet_preprocessed)"
    p.add_argument("--int8", action="store_true", help=text)
    p.add_argument("--int8-unmeasured", action="store_true", help="--int8 without that measurement")
    p.add_argument("--overwrite", action="store_true")
    p.set_defaults(run=_export)


def _export(o: argparse.Namespace) -> None:
    from nnunet_kd.deploy.archive import check_archive, write_archive
    from nnunet_kd.deploy.export import export_model
    from nnunet_kd.nnunet_io.model_folder import resolve_folder

    if o.zip:
        check_archive(o.out, o.overwrite)
    openvino = None
    if o.openvino or o.openvino_half or o.int8 or o.int8_unmeasured:
        from nnunet_kd.deploy.openvino_folder import OpenVINO

        o.onnx = True  # what OpenVINO's files are made of
        openvino = OpenVINO(o.openvino_half, o.int8 or o.int8_unmeasured, not o.int8_unmeasured)
    out = export_model(resolve_folder(o.model), o.out, tuple(o.folds), o.checkpoint, o.name, o.overwrite, o.onnx, openvino)
    print(f"wrote {out} (verified: same logits as the training checkpoint)")
    if o.zip:
        print(f"wrote {write_archive(out)} (install with nnUNetv2_install_pretrained_model_from_zip)")
    folds = " ".join(o.folds)
    print("predict with stock nnU-Net:")
    print(f"  nnUNetv2_predict_from_modelfolder -m {out} -f {folds} -i IMAGES -o OUT -device cpu")
    if openvino is not None and openvino.int8:
        from nnunet_kd.deploy.openvino_folder import measured_text

        print(measured_text(out))
    if o.onnx:
        print(
            f"predict without nnU-Net and torch (ONNX verified against torch):\n  nnunet-kd predict -m {out} -i IMAGES -o OUT"
        )


def add_predict(commands: argparse._SubParsersAction) -> None:
    """Add `nnunet-kd predict`."""
    from nnunet_kd.deploy.runner.__main__ import add_arguments

    p = commands.add_parser("predict", help="predict with an exported student, without nnU-Net and torch")
    add_arguments(p)
    p.set_defaults(run=_predict)


def _predict(o: argparse.Namespace) -> None:
    from nnunet_kd.deploy.runner import RunnerError
    from nnunet_kd.deploy.runner.__main__ import run

    try:
        run(o)
    except RunnerError as error:
        raise KDError(str(error)) from error
    except ModuleNotFoundError as error:
        raise KDError(f"{error.name} is not installed: pip install {error.name}") from error
