"""Benchmarks: what torchinit costs beside the torch code that it stands for; ``./dev bench`` runs them."""
