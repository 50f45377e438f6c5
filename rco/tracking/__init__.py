"""Floor 2: what a trained model tells MLflow, now or later."""
