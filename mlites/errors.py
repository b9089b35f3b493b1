"""The error that means "what you gave us is wrong", and the one that means "what we made is"."""


class InputError(Exception):
    """Wrong input from the user: a recipe, data, a model, a setting of the environment.

    The message is one line that says what is wrong, where, and what would be right. The command line prints it without
    a traceback and exits with 2; any other exception is a defect or a failure of the machine and exits with 1.
    """


class ParityError(Exception):
    """A model answers differently from its source: it is not offered. The command line exits with 1, in one line."""
