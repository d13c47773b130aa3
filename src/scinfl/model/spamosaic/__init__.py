"""Integration of spatial sections of one or several modalities."""
