"""What is raised and warned of across the package; without torch, so that bad options are refused at once."""


class InputError(ValueError):
    """Input from outside that cannot be used; the message says what was wrong and what would be right."""


class FieldError(InputError):
    """Wrong input whose message names fields of a configuration, in `fields`; others may call them otherwise."""

    def __init__(self, message: str, *fields: str) -> None:
        super().__init__(message)
        self.fields = fields


class StepError(InputError):
    """Something has to be done first: `step` says what, in words that close the message.

    The command line puts the command of that step in its place.
    """

    def __init__(self, message: str, step: str) -> None:
        super().__init__(f"{message}; {step}")
        self.message, self.step = message, step


class NotReceivedError(InputError):
    """What a radio brought holds no delivery: the input is well formed, and there is nothing in it to decode."""


class PromptTruncatedWarning(UserWarning):
    """The text encoder does not read the whole prompt."""


class ConditionWarning(UserWarning):
    """A condition outside the range that an update was trained for; names each field, its value and the range."""


class ReceptionWarning(UserWarning):
    """What was received can be decoded, but perhaps not in the way that the metadata ask for."""


class EndpointWarning(UserWarning):
    """An endpoint draws in another way than it was asked to, or not all that it was asked for."""


class SafetyWarning(UserWarning):
    """What a pipeline's safety checker blanked, or that it is not asked."""


class SkippedWarning(UserWarning):
    """Pictures or captions that cannot be used were left out, as was asked for."""
