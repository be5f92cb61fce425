"""torchinit says how the weights of a PyTorch model start: as data, before anything is written, with proof after."""
