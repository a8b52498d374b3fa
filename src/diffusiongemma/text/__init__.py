"""Strings, token ids, chat messages."""
