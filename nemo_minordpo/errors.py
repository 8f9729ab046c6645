"""Errors that a user can put right."""


class UserError(ValueError):
    """Wrong input, setting or file: says what, where and what to do.

    Commands print its message alone and exit with code 2. Every other exception is a defect of the program, and keeps
    its traceback.
    """
