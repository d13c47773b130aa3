"""Response of cells to perturbations of genes."""
