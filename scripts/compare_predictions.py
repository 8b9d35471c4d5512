"""Share of equal voxels of two folders of segmentations, say the runner's and nnU-Net's.

    python scripts/compare_predictions.py A B [--least 0.9999]

Geometry and type must be equal too. The last line is one JSON object; exit code 1 if the share is below --least.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import SimpleITK

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".tif", ".bmp")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--least", type=float, default=0.9999, help="default: 0.9999")
    options = parser.parse_args()
    names = sorted(p.name for p in options.a.iterdir() if p.name.endswith(ENDINGS))
    if not names:
        parser.error(f"{options.a} holds no segmentation")
    shares, different, voxels, foreground = [], 0, 0, 0
    for name in names:
        first, second = (SimpleITK.ReadImage(str(folder / name)) for folder in (options.a, options.b))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection", "GetPixelIDTypeAsString"):
            if getattr(first, what)() != getattr(second, what)():
                print(f"{name}: {what[3:]} is {getattr(first, what)()} and {getattr(second, what)()}", file=sys.stderr)
                return 1
        first, second = map(SimpleITK.GetArrayFromImage, (first, second))
        count = int((first != second).sum())
        if count:
            print(f"{name}: {count} of {first.size} voxels differ")
        shares.append(1 - count / first.size)
        different, voxels, foreground = different + count, voxels + first.size, foreground + int(np.count_nonzero(second))
    share = 1 - different / voxels
    found = {"cases": len(names), "voxels": voxels, "different": different, "agreement": share, "worst_case": min(shares)}
    print(json.dumps(found | {"foreground": round(foreground / voxels, 4)}))
    return int(share < options.least)


if __name__ == "__main__":
    sys.exit(main())
