"""The examples of a task: read, checked, sampled, and turned into batches of token ids."""
