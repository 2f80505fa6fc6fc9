"""The ways in which a run can fail without a bug."""


class SettingsError(ValueError):
    """A setting does not fit the others, or the machine."""


class DataError(ValueError):
    """The data is missing, broken, or not what the settings say."""


class NonFiniteError(ArithmeticError):
    """The loss is NaN or infinite."""
