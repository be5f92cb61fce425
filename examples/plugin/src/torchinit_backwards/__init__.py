"""Layers that keep their weights the other way round, and what torchinit has to know of them."""
