"""Found by `nnUNetv2_train -tr nnUNetTrainerFitNets` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerFitNets

__all__ = ["nnUNetTrainerFitNets"]
