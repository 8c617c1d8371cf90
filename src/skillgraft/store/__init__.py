"""The experiment store: runs that are complete or absent, their identity, and what refers to them."""
