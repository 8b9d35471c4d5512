"""Drawn data sets with a source and unseen domains."""
