"""What people can mend is said in one line; all else is a bug and keeps its traceback."""


class GnnrlError(Exception):
    """Something that whoever started a command can mend; its text says what, and how.

    Attributes:
        exit_code: of the command: 2 where it was asked for wrongly, 1 where it failed.
    """

    exit_code = 2


class InputError(GnnrlError, ValueError):
    """A setting, a name or a file that cannot be used."""


class DataError(InputError):
    """A data set that is unknown, missing or damaged."""


class EpisodeError(GnnrlError, RuntimeError):
    """Episodes that cannot be run, however often that is tried."""

    exit_code = 1


class Notice(UserWarning):
    """A warning of ours: people are shown it, whatever becomes of those of libraries."""
