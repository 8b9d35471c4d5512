"""What the user can mend: one line that names the file and the fix."""


class RunnerError(Exception):
    """The message is one line and holds the fix."""
