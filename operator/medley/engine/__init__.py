"""Inside the engine pod: the supervisor and what it puts into vLLM. Needs only what a vLLM image has."""
