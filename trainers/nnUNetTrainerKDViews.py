"""Found by `nnUNetv2_train -tr nnUNetTrainerKDViews` when nnUNet_extTrainer names this folder."""

from nnunet_kd.trainer import nnUNetTrainerKDViews

__all__ = ["nnUNetTrainerKDViews"]
