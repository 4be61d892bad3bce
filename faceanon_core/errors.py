"""Every error a user can meet. The message is one sentence: what is wrong, and what to do."""


class FaceAnonError(Exception):
    """Base of all errors this package raises on purpose; its text is meant for the user."""


class InputError(FaceAnonError):
    """The picture, tensor or file given cannot be used."""


class ShapeError(InputError):
    """A tensor has another shape than documented."""


class UnknownNameError(InputError):
    """A region, target, attribute or other name is not one we know."""


class NoFaceError(FaceAnonError):
    """No face was found where one is needed."""


class AnonymizationError(FaceAnonError):
    """A face could not be anonymized, so nothing may be emitted."""


class WeightsError(FaceAnonError):
    """A weights file is missing, damaged or of another architecture."""


class Cancelled(FaceAnonError):
    """The user stopped the run."""
