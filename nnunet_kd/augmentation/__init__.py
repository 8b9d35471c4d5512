"""Changes of a batch: photometric views, mirroring."""
