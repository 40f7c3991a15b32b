"""Versioned messages between operator, router and engine."""
