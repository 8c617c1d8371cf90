"""The two programs, skillgraft and grafts."""
