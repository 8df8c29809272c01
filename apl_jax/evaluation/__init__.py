"""Scores: what a run's predictions and pseudo labels are worth against annotations that training never saw."""
