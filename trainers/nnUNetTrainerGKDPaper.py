"""Found by `nnUNetv2_train -tr nnUNetTrainerGKDPaper` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerGKDPaper

__all__ = ["nnUNetTrainerGKDPaper"]
