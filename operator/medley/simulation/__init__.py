"""Discrete-event simulation over the same planning code: what a plan does when requests come, without a GPU.

arrivals   who comes when, with which sizes: seeded processes and published traces
engine     one engine: continuous batching, chunked prefill, KV blocks, preemption
fleet      replicas behind a router that follows a routing table
served     what the requests met: TTFT, TPOT, attainment

Pure: no clock and no I/O; chance comes from a generator that the caller seeds.
"""
