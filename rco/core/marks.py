"""Marks of the lines that a task prints for people. Imports nothing: the process that reads these lines stays light."""

PREFIX = "rco | "  # of every such line; the local runner shows these and files the rest
REFUSED = "refused: "  # after the prefix: the one line that says which input a task could not work with
DIVERGED = "diverged: "  # likewise, why a training came to nothing
FULL = "disk full: "  # likewise, where there was no space
PROBED = "probed: "  # likewise, a finding of `rco.tasks.probe`, as JSON
DIED = "died: "  # likewise, how a process of the task has ended, and why it was not started again
