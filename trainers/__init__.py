"""Trainers that nnU-Net finds by name: point nnUNet_extTrainer at this folder (`nnunet-kd trainers-path`)."""
