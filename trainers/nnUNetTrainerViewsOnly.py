"""Found by `nnUNetv2_train -tr nnUNetTrainerViewsOnly` when nnUNet_extTrainer names this folder."""

from nnunet_kd.named_trainers import nnUNetTrainerViewsOnly

__all__ = ["nnUNetTrainerViewsOnly"]
