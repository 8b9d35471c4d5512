"""Found by `nnUNetv2_train -tr nnUNetTrainerDistillation` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.distillation import nnUNetTrainerDistillation

__all__ = ["nnUNetTrainerDistillation"]
