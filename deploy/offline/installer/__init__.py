"""Installs a bundle of RAG Deck on a machine without internet: verifies, unpacks, makes a venv, writes the settings, starts.

Needs Python's standard library and nothing else, because it runs before anything is installed; it travels in the bundle as
`ragdeck_installer/` beside `install.py`. Knows nothing of how a bundle is made.
"""
