"""Files that a new fleet gets. This one is Python, so that it is checked as all code is; the others are text."""
