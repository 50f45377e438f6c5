"""Networks by family: one file each, and the layers that they share."""
