"""Checkpoints: where they are, their tensors, and the names on both sides."""
