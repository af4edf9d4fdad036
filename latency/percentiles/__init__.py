"""Exact numbers over all stored queries: percentiles, trends, what if, causes of the last hour."""
