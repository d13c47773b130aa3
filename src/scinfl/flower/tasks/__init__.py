"""What a site contributes to each class of model, one file per class: checks of its data, facts to share, the model."""
