"""Sudoku as text: puzzles, rules for the canvas, training data, a command."""
