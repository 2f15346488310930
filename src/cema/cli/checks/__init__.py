"""What `cema check` looks at: one small function for each thing, by what it is about."""
