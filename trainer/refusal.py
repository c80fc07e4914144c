"""The base of every reason why a training may not begin (exit code 3). No torch here."""


class Refused(Exception):
    """Something the user can put right; the message says what is wrong, where, and the way out."""
