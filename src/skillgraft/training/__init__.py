"""The two Lightning modules, fine-tuning and mask training, and what they share."""
