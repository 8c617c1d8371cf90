"""The one kind of error that is the user's to mend."""


class InputError(Exception):
    """Bad input: one line that names the file, row or key, what was found and what was expected."""
