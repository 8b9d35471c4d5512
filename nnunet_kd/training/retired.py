"""Trainers by names that only folders trained earlier have: they continue, validate and predict as they always did."""

from __future__ import annotations

from nnunet_kd.config.recipe import RETIRED
from nnunet_kd.training.distillation import nnUNetTrainerDistillation


class _Retired(nnUNetTrainerDistillation):
    def on_train_start(self) -> None:
        super().on_train_start()
        self.print_to_log_file(
            f"nnunet_kd: {type(self).__name__} is kept for folders that have its name; in new trainings plan with "
            f"`--preset {self.preset}` and use -tr nnUNetTrainerDistillation"
        )


class nnUNetTrainerGKDAdjusted(_Retired):
    """Of folders trained under this name: preset "adjusted"."""

    preset = RETIRED["nnUNetTrainerGKDAdjusted"]


class nnUNetTrainerGKDBalanced(_Retired):
    """Of folders trained under this name: preset "balanced"."""

    preset = RETIRED["nnUNetTrainerGKDBalanced"]


class nnUNetTrainerGKDDice(_Retired):
    """Of folders trained under this name: preset "dice"."""

    preset = RETIRED["nnUNetTrainerGKDDice"]
