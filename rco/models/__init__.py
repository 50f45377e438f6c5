"""Floor 2: networks by name, the weights of networks, and what can be heard inside them."""
