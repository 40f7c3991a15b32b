"""A real Kubernetes cluster on one Linux machine, without Docker, kind or a GPU.

`python -m e2e.stage --help` is the front door; `docs/stage.md` is the manual. Tests import `e2e.stage.apiserver`
for a bare API server. Nothing here is part of the distribution, and nothing in `medley` may import it.
"""
