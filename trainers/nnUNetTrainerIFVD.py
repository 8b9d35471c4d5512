"""Found by `nnUNetv2_train -tr nnUNetTrainerIFVD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerIFVD

__all__ = ["nnUNetTrainerIFVD"]
