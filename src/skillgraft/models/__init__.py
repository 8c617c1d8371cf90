"""Pre-trained models: their files, their families, and a classifier that returns class logits."""
