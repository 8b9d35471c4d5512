"""nnU-Net's trainer with a schedule and a seed, and the one that distils. The only files that subclass it."""
