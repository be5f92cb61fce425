"""Knowledge of layers: the values at which norms do nothing, the nonlinearities that follow, and their gains."""
