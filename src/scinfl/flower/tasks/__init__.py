"""What a site contributes, one file a model class."""
