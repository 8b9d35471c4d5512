"""A trained student where it is used: a stock nnU-Net folder, ONNX, OpenVINO, a runner without torch."""
