"""Models that stay warm, in-process or behind HTTP. Imports nothing of ours but settings types; torch only inside functions."""
