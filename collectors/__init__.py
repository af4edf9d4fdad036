"""Readings of machines and services. Knows nothing of rag or gpu_server."""
