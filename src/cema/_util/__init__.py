"""What every package may use: files, settings in TOML, range checks, the version."""
