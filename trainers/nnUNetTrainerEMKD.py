"""Found by `nnUNetv2_train -tr nnUNetTrainerEMKD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerEMKD

__all__ = ["nnUNetTrainerEMKD"]
