"""The selectors, a file each: its options, and its function to the region's sorted flat indices."""
