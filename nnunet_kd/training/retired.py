"""Trainers by names that only folders trained earlier have: they continue, validate and predict as they always did."""

from __future__ import annotations

from nnunet_kd.config.recipe import RETIRED
from nnunet_kd.training.distillation import nnUNetTrainerDistillation


class _Retired(nnUNetTrainerDistillation):
    def on_train_start(self):
        super().on_train_start()
        self.print_to_log_file(
            f"nnunet_kd: {type(self).__name__} is kept for folders that have its name; in new trainings plan with "
            f"`--preset {self.preset}` and use -tr nnUNetTrainerDistillation"
        )


class nnUNetTrainerGKDAdjusted(_Retired):
    preset = RETIRED["nnUNetTrainerGKDAdjusted"]


class nnUNetTrainerGKDBalanced(_Retired):
    preset = RETIRED["nnUNetTrainerGKDBalanced"]


class nnUNetTrainerGKDDice(_Retired):
    preset = RETIRED["nnUNetTrainerGKDDice"]
