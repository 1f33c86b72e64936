"""Convolutions whose kernel elements are B-spline functions: basis, layers, grid extension, moments, pruning."""
