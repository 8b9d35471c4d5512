"""Found by `nnUNetv2_train -tr nnUNetTrainerAT` when nnUNet_extTrainer names this folder."""

from nnunet_kd.named_trainers import nnUNetTrainerAT

__all__ = ["nnUNetTrainerAT"]
