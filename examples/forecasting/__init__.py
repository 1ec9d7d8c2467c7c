"""Half a year of carbon dioxide told from the two years before."""
