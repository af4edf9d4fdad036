"""Looking into a collection: its passages, what lies near a text, duplicates, what a question finds by stage. Reads only."""
