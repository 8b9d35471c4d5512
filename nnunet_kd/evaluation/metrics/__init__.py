"""Metrics of segmentations: of arrays, of cases, of folders."""
