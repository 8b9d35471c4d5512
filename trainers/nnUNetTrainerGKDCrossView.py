"""Found by `nnUNetv2_train -tr nnUNetTrainerGKDCrossView` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerGKDCrossView

__all__ = ["nnUNetTrainerGKDCrossView"]
