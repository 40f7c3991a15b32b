"""Stands in for vLLM in tests, on PYTHONPATH in its place."""
