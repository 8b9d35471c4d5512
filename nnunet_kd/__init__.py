"""Distil a trained nnU-Net (teacher) into a light student that stock nnU-Net can load. See README.md for the map."""

__version__ = "0.1.0"
