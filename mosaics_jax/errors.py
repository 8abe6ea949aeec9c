"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input. Its text is one line: what is wrong, and what to do about it.

    Library code raises it; the entry points print it after ``error:`` and exit with status 2, without a traceback.
    """
