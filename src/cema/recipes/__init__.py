"""How the weights that come with this package were made."""
