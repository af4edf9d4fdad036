"""Validation of a deployment: checks in order, each with evidence, cause and cure, and what they say of readiness.

Knows no settings, no runtime and no page: what is to be validated comes in as a `subject.Subject` and a `subject.Process`.
"""
