"""Optimisers: one file each. Importing one imports no torch."""
