"""Fuzzing: hostile inputs, made by hand and by chance, each read in a child process under limits."""
