"""A curve learned together with what is not known of it."""
