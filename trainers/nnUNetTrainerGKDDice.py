"""Found by `nnUNetv2_train -tr nnUNetTrainerGKDDice` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerGKDDice

__all__ = ["nnUNetTrainerGKDDice"]
