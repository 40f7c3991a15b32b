"""Carries the KV cache of running requests from one vLLM engine to another; part of medley's plugin.

`activation` decides whether this engine does it; then `connector` is vLLM's KV connector (its scheduler's half and its
workers' half), `utilities` runs between engine steps, `endpoints` in the API server. Everything else knows no vLLM:
`layout`, `leases`, `messages` and `incoming` are pure, `blocks` knows numpy or torch, `server`, `puller` and
`connections` know sockets. docs/migration.md says who tells whom what, and who may crash when.
"""
