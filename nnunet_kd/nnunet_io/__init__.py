"""nnU-Net's files: trained folders, checkpoints and plans, read safely."""
