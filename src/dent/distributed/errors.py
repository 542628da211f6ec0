"""What goes wrong with other processes and machines."""

from dent.errors import DentError


class WorkerError(DentError):
    """Workers died, or none could be started: the message says which work that stopped, and why.

    What was recorded before stays, and the same command goes on from there.
    """
