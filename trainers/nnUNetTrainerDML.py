"""Found by `nnUNetv2_train -tr nnUNetTrainerDML` when nnUNet_extTrainer names this folder."""

from nnunet_kd.named_trainers import nnUNetTrainerDML

__all__ = ["nnUNetTrainerDML"]
