"""Found by `nnUNetv2_train -tr nnUNetTrainerKD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerKD

__all__ = ["nnUNetTrainerKD"]
