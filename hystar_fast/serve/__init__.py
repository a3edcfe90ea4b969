"""An HTTP server that answers pictures and words from an index."""
