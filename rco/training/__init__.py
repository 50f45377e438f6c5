"""Floor 3: the training loop, and the trainings that it serves."""
