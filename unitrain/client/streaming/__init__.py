"""The streaming engine: batches of rows in flight, each answered once and in order."""
