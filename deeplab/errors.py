"""The ways in which a run can fail without a bug."""


class SettingsError(ValueError):
    """A setting does not fit the others, or the machine."""


class DataError(ValueError):
    """The data is missing, broken, or not what the settings say."""


class SizeError(DataError):
    """An image and its mask differ in size."""


class MaskModeError(DataError):
    """A mask does not hold one 8-bit label per pixel."""


class LabelError(DataError):
    """A mask holds a label that its data set does not have."""


class NonFiniteError(ArithmeticError):
    """The loss is NaN or infinite."""


class WorkerError(RuntimeError):
    """A process that makes training samples died or hangs."""
