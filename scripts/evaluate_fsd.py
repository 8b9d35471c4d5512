"""Post-hoc Frechet Semantic Distance (FSD) of models between their home domain and unseen ones.

    python scripts/evaluate_fsd.py --model TRAINING_FOLDER --source CHASE_DB1=801:Ts --target DRIVE=802:Tr
    python scripts/evaluate_fsd.py --model kd=FOLDER --model teacher=FOLDER --msan fit --source ... --target ... -o fsd.json

A student trained with nnUNetTrainerGKD keeps the alignment networks (MSAN) that turn features into semantic vectors in its
checkpoint; any other nnU-Net model folder gets one fitted to its training data. The same as `nnunet-kd fsd` (docs/fsd.md). The
last line on stdout is one JSON object with all figures. --quick takes 20 bootstrap samples instead of 200.
"""

import sys

from nnunet_kd.cli.main import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
    if "--quick" in arguments:
        arguments = [a for a in arguments if a != "--quick"] + ["--bootstrap", "20"]
    sys.exit(main(["fsd", *arguments]))
