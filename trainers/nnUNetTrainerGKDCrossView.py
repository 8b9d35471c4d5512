"""Found by `nnUNetv2_train -tr nnUNetTrainerGKDCrossView` when nnUNet_extTrainer names this folder."""

from nnunet_kd.named_trainers import nnUNetTrainerGKDCrossView

__all__ = ["nnUNetTrainerGKDCrossView"]
