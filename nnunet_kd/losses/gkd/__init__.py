"""The losses of the paper (Generalizable Knowledge Distillation): ACT, DCGD, DICD."""
