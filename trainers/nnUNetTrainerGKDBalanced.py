"""Found by `nnUNetv2_train -tr nnUNetTrainerGKDBalanced` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerGKDBalanced

__all__ = ["nnUNetTrainerGKDBalanced"]
