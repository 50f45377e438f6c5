"""The command `rco`. Starts light: nothing heavy is imported before a command needs it."""
