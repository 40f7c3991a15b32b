"""Decisions as pure functions: values in, values out. Read `reconcile` first."""
