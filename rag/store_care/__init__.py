"""Care of the store: its layout and version, sizes, re-embedding, backup and restore, and moving to a Milvus server."""
