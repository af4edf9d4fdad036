"""Getting it there: what to run where, with which files, and whether it works. Commands are `python -m deploy …`."""
