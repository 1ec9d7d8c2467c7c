"""Sources of samples and sinks of answers, one file a format."""
