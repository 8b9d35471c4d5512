"""Post-hoc Frechet Semantic Distance (FSD) of a trained run between its home domain and unseen ones.

    python scripts/evaluate_fsd.py --model TRAINING_FOLDER --source CHASE_DB1=801:Ts --target DRIVE=802:Tr

TRAINING_FOLDER is nnU-Net's output folder of a student trained with nnUNetTrainerGKD: its checkpoint keeps the alignment
networks (MSAN) that turn features into semantic vectors. The same as `nnunet-kd fsd`. The last line on stdout is one JSON
object with all figures. --quick takes 20 bootstrap samples instead of 200.
"""

import sys

from nnunet_kd.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(__doc__)
    if "--quick" in arguments:
        arguments = [a for a in arguments if a != "--quick"] + ["--bootstrap", "20"]
    sys.exit(main(["fsd", *arguments]))
