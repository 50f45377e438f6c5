"""Figures of the reports, a module a subject: functions from plain data (JSON values; None: missing) to a `Figure`."""
