"""What every change must pass before anything is looked at."""

from deployment_pipeline import call
from deployment_pipeline.commands import Command
from deployment_pipeline.refusals import RetryWithoutToken, TokenRequired


class Admission:
    def __init__(self, *, requires_tokens: bool) -> None:
        self._requires_tokens = requires_tokens

    def check(self, asked: Command) -> None:
        """Raises InvalidFields, TokenRequired, RetryWithoutToken."""
        asked.check()
        if asked.has_token:
            return
        if self._requires_tokens:
            raise TokenRequired(type(asked).__name__, asked.subject, asked.tokens)
        if call.attempt().is_repeat and not asked.may_repeat_blindly:
            raise retry_without_token(asked)


def retry_without_token(asked: Command) -> RetryWithoutToken:
    return RetryWithoutToken(type(asked).__name__, asked.subject, asked.tokens)
