"""Floor 3: a student on its way out: in other formats, and asked about images."""
