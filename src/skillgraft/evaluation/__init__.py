"""Predictions, metrics, calibration and statistics."""
