"""Training: recipes, data, corruption, losses, the loop."""
