"""The names that the literature's code gives to the weights of networks that are ours too: one family a file."""
