"""Who signs updates: keys in files, encrypted or not, and keys that only a command can use."""
