"""Found by `nnUNetv2_train -tr nnUNetTrainerSKD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.named_trainers import nnUNetTrainerSKD

__all__ = ["nnUNetTrainerSKD"]
