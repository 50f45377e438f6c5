"""Where images come from: one file a kind of source, and `kinds`, which asks each of them."""
