"""Grafts for other tools: checkpoints, task vectors, and the Hugging Face Hub."""
