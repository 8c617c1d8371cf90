"""Evaluation of models: predictions, metrics, calibration and statistics."""
