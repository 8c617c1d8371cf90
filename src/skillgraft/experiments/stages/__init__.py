"""The stages of a run: load → fine-tune → select → evaluate → report → publish, a file each."""
