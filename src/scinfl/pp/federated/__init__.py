"""Preprocessing over the cells of all sites, from sums."""
