"""Model: the tensors of a model by name, the parts of them that are here, and their description as sites."""
