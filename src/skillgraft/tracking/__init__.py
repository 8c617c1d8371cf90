"""Everything that concerns Weights & Biases."""
