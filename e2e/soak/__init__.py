"""The soak: a router and engines as plain processes, clients that compare every token, interruption after interruption.

`python -m e2e.soak` (`make soak`) goes on where it was stopped: counts are kept in `build/soak.json`.
"""
