"""Mutual TLS between operator, routers and engines. Standard library only: it also runs in vLLM's processes."""
