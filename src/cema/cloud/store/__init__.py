"""What the cloud must not lose."""
