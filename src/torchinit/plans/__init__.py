"""Plans: what will be written, worked out, carried out, reported and compared."""
