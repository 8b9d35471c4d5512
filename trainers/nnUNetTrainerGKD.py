"""Found by `nnUNetv2_train -tr nnUNetTrainerGKD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerGKD

__all__ = ["nnUNetTrainerGKD"]
