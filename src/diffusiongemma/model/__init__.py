"""The stack of weights: configuration, layers, masks, cache, and the two passes."""
