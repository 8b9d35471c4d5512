"""Names of trainers that only folders trained earlier have, for nnU-Net's search. New trainings: docs/methods.md, "Presets"."""

from nnunet_kd.training.retired import nnUNetTrainerGKDAdjusted, nnUNetTrainerGKDBalanced, nnUNetTrainerGKDDice

__all__ = ["nnUNetTrainerGKDAdjusted", "nnUNetTrainerGKDBalanced", "nnUNetTrainerGKDDice"]
