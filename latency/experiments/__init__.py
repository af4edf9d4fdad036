"""Experiments as they are kept, and replay."""
