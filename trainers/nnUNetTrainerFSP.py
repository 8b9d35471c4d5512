"""Found by `nnUNetv2_train -tr nnUNetTrainerFSP` when nnUNet_extTrainer names this folder."""

from nnunet_kd.training.named import nnUNetTrainerFSP

__all__ = ["nnUNetTrainerFSP"]
