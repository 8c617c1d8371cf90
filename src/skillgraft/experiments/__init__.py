"""One run as stages, sweeps, and reruns."""
