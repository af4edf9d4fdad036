"""A query, a comparison or an experiment as one file to send on."""
