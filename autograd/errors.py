"""Errors that are the caller's to mend; the commands print them as one line and exit with status 2."""


class InputError(ValueError):
    """A mistake in what was given: the message says what was expected, what came, and what to do."""


class ShapeError(InputError):
    """An array whose shape does not fit the others."""


class DtypeError(InputError):
    """An array of the wrong kind of number: float targets, integer weights."""


class AnomalyError(InputError):
    """A value that is not finite, inside `detect_anomaly`."""


class DeviceError(InputError):
    """A device that was asked for and is not there."""
