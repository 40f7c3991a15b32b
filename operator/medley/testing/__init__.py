"""Builders, fakes and Hypothesis strategies for the tests."""
