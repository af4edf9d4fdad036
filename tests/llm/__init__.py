"""A language model small enough to build on the spot, and a real OpenAI-compatible server that serves it."""
