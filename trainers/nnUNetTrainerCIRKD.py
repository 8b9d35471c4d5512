"""Found by `nnUNetv2_train -tr nnUNetTrainerCIRKD` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerCIRKD

__all__ = ["nnUNetTrainerCIRKD"]
