"""What every room stands on: errors, seeds, files, leases, signals, progress bars, shared GPUs."""
