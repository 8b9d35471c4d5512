"""Found by `nnUNetv2_train -tr nnUNetTrainerCWD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerCWD

__all__ = ["nnUNetTrainerCWD"]
