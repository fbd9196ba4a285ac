"""Recipes: paper, and what departs from it."""
