"""Found by `nnUNetv2_train -tr nnUNetTrainerDistillation` when nnUNet_extTrainer names this folder."""

from nnunet_kd.trainer import nnUNetTrainerDistillation

__all__ = ["nnUNetTrainerDistillation"]
