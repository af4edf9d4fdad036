"""Queries of other programs: OTLP/HTTP in, spans to stages, stored beside our own."""
