"""One request, asked once: the asker, the limit in flight, the journal."""
