"""Differential privacy: of rows, of sites, of sums before training."""
