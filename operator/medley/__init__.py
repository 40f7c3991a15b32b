"""medley: the cheapest mix of GPUs that keeps a latency promise, mostly on spot, without losing a token."""

__version__ = "0.1.0"
