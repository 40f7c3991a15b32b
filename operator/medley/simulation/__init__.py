"""Discrete-event simulation over the same planning code."""
