"""Found by `nnUNetv2_train -tr nnUNetTrainerAT` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerAT

__all__ = ["nnUNetTrainerAT"]
