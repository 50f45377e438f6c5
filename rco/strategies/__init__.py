"""Floor 2: which checkpoints of a route become anchors, and how hard they are for a student. NumPy only."""
