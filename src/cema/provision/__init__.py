"""What is done once for a fleet: its key, its bundle, its configuration, a token for each of its devices."""
