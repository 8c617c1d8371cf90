"""The base of all other packages: errors, seeds, files, leases, signals, progress bars, shared GPUs."""
