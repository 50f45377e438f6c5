"""Faults on purpose: tasks are killed, starved and lied to; what comes out must be what comes out without faults, or a clear error."""
