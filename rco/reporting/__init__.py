"""Floor 4: what came out, for people."""
