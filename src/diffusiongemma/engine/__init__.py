"""The loop from a prompt to an answer."""
