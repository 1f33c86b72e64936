"""Levels-of-Experts: coordinate networks whose weights depend on position or class."""

from models.levels_of_experts.method import LevelsOfExperts

__all__ = ["LevelsOfExperts"]
