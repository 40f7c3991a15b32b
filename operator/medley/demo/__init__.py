"""What `medley demo --local` runs: real engines and a router as plain processes on this machine.

Called by the command line and by tests that need a real engine. Knows processes and paths; decides nothing.
"""
