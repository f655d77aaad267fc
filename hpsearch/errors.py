"""The errors a caller of hpsearch can meet.

Every message says where, what was expected, what came and what to do; the command line prints it as it is.
`exit_code` is the process's status when the error reaches the command line.
"""


class HpsearchError(Exception):
    """Any failure that hpsearch foresees."""

    exit_code = 1


class UsageError(HpsearchError):
    """An argument names something that is not there or may not be touched."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration that cannot be read or does not hold together."""


class DataError(UsageError):
    """Labelled data that cannot be read as described."""


class HubError(HpsearchError):
    """A model or dataset that lives on the Hugging Face Hub, which does not answer."""


class StudyError(HpsearchError):
    """A study that cannot be used for what was asked."""


class TrainingError(HpsearchError):
    """A training that cannot go on: a diverged loss, or a model that does not fit its settings."""


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; a `KeyboardInterrupt`, because Optuna closes a trial properly for nothing else."""
