"""Configurations by name: one file per data set and family of methods; they state differences from the defaults
only."""
