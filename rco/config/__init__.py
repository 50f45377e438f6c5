"""Floor 4: everything that one run, or one comparison, is told."""
