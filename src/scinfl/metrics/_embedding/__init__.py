"""Scores of embeddings and domains."""
