"""Found by `nnUNetv2_train -tr nnUNetTrainerKDMirrored` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerKDMirrored

__all__ = ["nnUNetTrainerKDMirrored"]
