"""Found by `nnUNetv2_train -tr nnUNetTrainerScheduled` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.scheduled import nnUNetTrainerScheduled

__all__ = ["nnUNetTrainerScheduled"]
