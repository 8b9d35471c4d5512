"""What one step distils: views, the teacher's answers, phases, weights. Tensors and modules, no nnU-Net."""
