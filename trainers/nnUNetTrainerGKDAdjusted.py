"""Found by `nnUNetv2_train -tr nnUNetTrainerGKDAdjusted` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerGKDAdjusted

__all__ = ["nnUNetTrainerGKDAdjusted"]
