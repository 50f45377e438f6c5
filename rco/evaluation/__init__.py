"""Floor 3: what a trained network is worth."""
