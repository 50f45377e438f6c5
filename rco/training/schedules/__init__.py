"""Schedules of the learning rate: one file each. Importing one imports no torch."""
