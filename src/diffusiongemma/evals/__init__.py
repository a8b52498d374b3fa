"""Scores on held-out data. Thin, on ``api``."""
