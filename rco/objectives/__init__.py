"""Floor 2: what a stage minimises. One objective a file, each with its paper. No objective knows of the route."""
