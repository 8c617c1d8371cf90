"""The one kind of error that is the user's to mend."""

from __future__ import annotations


class InputError(Exception):
    """Bad input: one line that names the file, row or key, what was found and what was expected."""


class RunNotFound(InputError):
    """A run that another one builds on is not in the store; another job may be about to make it."""


class GraftError(InputError):
    """A graft that does not fit the model, or a file that is not whole."""


def reason(error: BaseException) -> str:
    """Return the first line of what a library says of an error, or its class where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
