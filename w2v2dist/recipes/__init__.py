"""Recipes: a paper's table as a graph of stages, each a command of this project."""
