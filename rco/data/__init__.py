"""Floor 2: from a source of images to normalised, augmented batches."""
