"""Model: what a model holds: names, tensors and the parts of them that are here, and what a site of it is."""
