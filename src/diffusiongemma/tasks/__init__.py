"""Tasks: problems as text, answers and scoring. Pure Python; knows neither torch nor the model."""
