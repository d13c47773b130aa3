"""A site's side."""
