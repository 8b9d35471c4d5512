"""Found by `nnUNetv2_train -tr nnUNetTrainerViewsOnly` when nnUNet_extTrainer names this folder."""

from nnunet_kd.trainer import nnUNetTrainerViewsOnly

__all__ = ["nnUNetTrainerViewsOnly"]
