"""Pre-trained models: their files, families, and the classifier that yields class logits."""
