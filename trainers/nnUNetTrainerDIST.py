"""Found by `nnUNetv2_train -tr nnUNetTrainerDIST` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerDIST

__all__ = ["nnUNetTrainerDIST"]
