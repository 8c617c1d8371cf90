"""The method of Panigrahi et al. (ICML 2023, arXiv 2302.06600) on tensors: regions, grafts, the learned mask.

Of the frameworks only torch is imported here, so that `Graft` and `localize` fit any training code.
"""
