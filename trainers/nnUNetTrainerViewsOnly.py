"""Found by `nnUNetv2_train -tr nnUNetTrainerViewsOnly` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerViewsOnly

__all__ = ["nnUNetTrainerViewsOnly"]
