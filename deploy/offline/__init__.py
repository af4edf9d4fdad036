"""Moving RAG Deck into a network without internet: pack it (`bundle`), unpack it (`installer`), prove it (`check`) before.

`installer.py` travels in the bundle as `install.py` and runs before anything is installed: standard library only.
"""
