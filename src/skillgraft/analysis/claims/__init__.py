"""What is read from a store: tables, overlaps, plots, claims and the report."""
