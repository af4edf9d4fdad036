"""Measurements behind the claims: each module runs by itself, prints what it does, and ends in one JSON line."""
