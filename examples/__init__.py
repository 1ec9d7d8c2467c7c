"""Complete problems to start from, one folder each: settings, a README, a client where one is needed."""
