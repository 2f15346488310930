"""Where images come from: data sets by name or path, and their corruptions."""
