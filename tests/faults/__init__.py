"""The fault laboratory: the real query path with one cause of slowness in it at a time, and what the findings say of it.

`laboratory.py` runs and measures, `world.py` builds what the path calls, `servers.py`, `fakes.py` and `readings.py` are what is
made slow, `causes*.py` are the causes. `python -m tests.faults` prints the table: cause, measured saving, said saving, rank.
"""
