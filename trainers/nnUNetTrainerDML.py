"""Found by `nnUNetv2_train -tr nnUNetTrainerDML` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerDML

__all__ = ["nnUNetTrainerDML"]
