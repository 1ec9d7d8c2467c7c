"""Settings files and flags: parsed, checked, and tried in a dry run."""
