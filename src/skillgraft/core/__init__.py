"""The method of the paper on tensors: regions, grafts, and the mask that is learned. Needs torch alone."""
