"""The query path: cache, hyde, embed, search, rerank, generate. Knows nothing of machines, pages or HTTP servers of ours."""
