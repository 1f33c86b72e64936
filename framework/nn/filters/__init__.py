"""Discrete scale-space operators, the master key filters, banks of them, and their way into a network."""
