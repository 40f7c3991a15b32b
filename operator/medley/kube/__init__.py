"""The API server: observe and apply. Knows Kubernetes, decides nothing."""
