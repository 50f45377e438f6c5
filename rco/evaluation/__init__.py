"""Floor 3: measures of trained networks, and statistics of comparisons."""
