"""Faults on purpose: tasks are killed, starved and lied to, and must end as they do without faults, or with a clear error."""
