"""Moving RAG Deck into a network without internet: pack it (`bundle`), unpack it (`installer`), prove it (`running`) before.

`installer/` travels in the bundle beside `install.py` and runs before anything is installed: standard library only.
"""
