"""Floor 5: one function a task of the pipeline."""
