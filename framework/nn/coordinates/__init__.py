"""Coordinate networks: sine layers, experts chosen by position or class, luminance classes."""
