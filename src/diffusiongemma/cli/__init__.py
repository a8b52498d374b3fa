"""The command line. Parses, calls, prints; knows nothing about generation."""
