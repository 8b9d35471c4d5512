"""Found by `nnUNetv2_train -tr nnUNetTrainerKDAdjustedMirrored` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerKDAdjustedMirrored

__all__ = ["nnUNetTrainerKDAdjustedMirrored"]
