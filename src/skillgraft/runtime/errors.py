"""Errors that the user can correct: each is one line without a traceback."""

from __future__ import annotations


class InputError(Exception):
    """Wrong input: the message names the file and row or the key, what was found, and what was expected."""


class RunNotFound(InputError):
    """A run that another run builds on is not in the store; another job may still be making it."""


class GraftError(InputError):
    """A graft that does not fit the model, or a graft file that is incomplete or altered."""


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class where there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
