"""The vocabulary in which families describe a model: sizes, weights, positions."""
