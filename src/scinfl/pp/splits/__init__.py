"""Splits: sites, perturbations."""
