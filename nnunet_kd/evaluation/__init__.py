"""Models on domains: predictions, metrics, FSD, a report."""
