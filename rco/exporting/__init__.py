"""Floor 4: a student on its way out: in other formats, and asked about images."""
