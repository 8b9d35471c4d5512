"""`nnunet-kd compare FILE.yaml`: methods x seeds, trained, exported and evaluated once each, into one CSV."""
