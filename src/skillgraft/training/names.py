"""Names of the files from which training resumes, in the folder of what is being made."""

from __future__ import annotations

RESUME = "resume.safetensors"  # the last checkpoint of fine-tuning
BEST = "best.safetensors"  # the weights that were best on validation so far
MASK = "mask.safetensors"  # the last checkpoint of mask training
