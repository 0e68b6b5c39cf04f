"""Measure, compare and draw. No training and no deployed model needs this package."""
