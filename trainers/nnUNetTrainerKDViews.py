"""Found by `nnUNetv2_train -tr nnUNetTrainerKDViews` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerKDViews

__all__ = ["nnUNetTrainerKDViews"]
