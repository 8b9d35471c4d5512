"""Found by `nnUNetv2_train -tr nnUNetTrainerSKD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerSKD

__all__ = ["nnUNetTrainerSKD"]
