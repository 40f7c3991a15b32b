"""Measurements. `make bench [ONLY=area]` runs them; each module here but `rows` is one area."""
