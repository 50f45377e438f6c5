"""Floor 1: what everything else stands on. Errors in words, files that can be trusted, addresses."""
