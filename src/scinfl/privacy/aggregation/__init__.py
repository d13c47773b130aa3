"""Secure aggregation: sums whose terms the server cannot read."""
