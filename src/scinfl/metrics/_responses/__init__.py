"""Scores of predicted responses to perturbations."""
