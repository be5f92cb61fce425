"""Serialization: dataclasses as plain data and back, with every mistake in the data at once."""
