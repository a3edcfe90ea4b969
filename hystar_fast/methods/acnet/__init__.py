"""ACNet: a generator makes photo-like pictures of sketches, trained together with the network that retrieves."""
