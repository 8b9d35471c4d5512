"""Networks: cut into stages, aligned by MSANs, counted and timed."""
