"""Entry of a challenge container: images of /input in, segmentations to /output, with the model in /opt/model.

    /input/images/CHANNEL/NAME.mha   ->   /output/images/segmentation/NAME.mha

A model with several channels reads one folder per channel, in the model's order: --channels images/t2 images/adc. Files of one
case have the same name in each, or there is only one file in each. Every option can be a variable of the container too.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ENDINGS = (".mha", ".mhd", ".nii.gz", ".nii", ".nrrd", ".png", ".tif", ".tiff")


def find_cases(root: Path, channels: list[str]) -> list[tuple[str, list[Path]]]:
    """(file name of the result, files by channel) of all cases. Exits with one line if they cannot be told."""
    if not channels:
        found = sorted(p for p in (root / "images").glob("*") if p.is_dir())
        if len(found) != 1:
            names = " ".join(f"images/{p.name}" for p in found) or "none"
            stop(f"{root / 'images'} holds {len(found)} folders ({names}): name one per channel with --channels or $CHANNELS")
        channels = [f"images/{found[0].name}"]
    files = [sorted(p for p in (root / c).glob("*") if p.name.endswith(ENDINGS)) for c in channels]
    for channel, names in zip(channels, files, strict=True):
        if not names:
            stop(f"{root / channel} holds no image ({', '.join(ENDINGS)}): check --channels or $CHANNELS")
    if all(len(names) == 1 for names in files):
        return [(files[0][0].name, [names[0] for names in files])]
    by_name = [{p.name: p for p in names} for names in files]
    for name in sorted(set().union(*by_name)):
        for channel, names in zip(channels, by_name, strict=True):
            if name not in names:
                stop(f"{root / channel / name} is missing: every case needs a file of the same name in each channel's folder")
    return [(name, [names[name] for names in by_name]) for name in sorted(by_name[0])]


def stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    env = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, default=env("INPUT", "/input"), help="$INPUT, default: /input")
    parser.add_argument("--output", type=Path, default=env("OUTPUT", "/output"), help="$OUTPUT, default: /output")
    parser.add_argument("--model", type=Path, default=env("MODEL", "/opt/model"), help="$MODEL, default: /opt/model")
    text = "folders in --input, one per channel in the model's order; $CHANNELS, default: the only folder in images"
    parser.add_argument("--channels", nargs="+", default=env("CHANNELS", "").split(), help=text)
    text = "folder in --output; $RESULT, default: images/segmentation"
    parser.add_argument("--result", default=env("RESULT", "images/segmentation"), help=text)
    parser.add_argument("--backend", default=env("BACKEND", "onnxruntime"), help="$BACKEND, default: onnxruntime")
    text = "do not average over mirrored copies; $NO_MIRRORING, set to anything"
    parser.add_argument("--no-mirroring", action="store_true", default=bool(env("NO_MIRRORING")), help=text)
    options = parser.parse_args()

    if not (options.model / "runner").is_dir():
        stop(f"{options.model} holds no runner: export the model with `nnunet-kd export MODEL -o OUT --onnx`")
    sys.path.insert(0, str(options.model))  # the model brings the code that runs it
    from runner import Predictor, RunnerError

    try:
        predictor = Predictor(options.model, options.backend, mirroring=not options.no_mirroring)
        cases = find_cases(options.input, options.channels)
        folder = options.output / options.result
        folder.mkdir(parents=True, exist_ok=True)
        for name, files in cases:
            predictor.predict_files(files, folder / name)
            print(f"wrote {folder / name}", flush=True)
    except (RunnerError, OSError) as error:
        stop(str(error))


if __name__ == "__main__":
    main()
