"""Fine-tuning and mask training with Lightning: the two modules, their batches, checkpoints and ranks."""
