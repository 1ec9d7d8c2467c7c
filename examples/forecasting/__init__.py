"""Half a year of carbon dioxide predicted from the two years before."""
