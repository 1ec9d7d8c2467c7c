"""How long a stream bears with a server or a model that is away."""

import time

from unitrain.client.connection import Connection
from unitrain.client.model import ModelInfo
from unitrain.errors import ClientError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
"""Between attempts; doubled each time."""

_GONE_AFTER_S = 3.0
"""A version that is asked for is given up when others have been served in its stead for so long: a server
that was restarted has all its versions sooner than that."""

_ASK_TIMEOUT_S = 1.0


class Patience:
    """When to try again after a failure that passes, and when to give up.

    Attributes:
        resume_at_s: of the monotonic clock: nothing is to be tried before.
    """

    def __init__(self, model: ModelInfo, retry_for_s: float) -> None:
        self._model = model
        self._retry_for_s = retry_for_s
        self._pause_s = _FIRST_PAUSE_S
        self._since_s: float | None = None
        self._replaced_since_s: float | None = None
        self.resume_at_s = 0.0

    def answered(self) -> None:
        """Begin anew: the model answers."""
        self._since_s = self._replaced_since_s = None
        self._pause_s = _FIRST_PAUSE_S

    def failed(self, why: str) -> str | None:
        """Plan the next attempt; where there is to be none, the sentence that says why."""
        now = time.monotonic()
        if now < self.resume_at_s:
            return None  # one pause for all that failed together
        if self._since_s is None:
            self._since_s = now
        waited_s = now - self._since_s
        if waited_s >= self._retry_for_s:
            return f"{self._model.url}: gave up after {self._retry_for_s:g} s (--retry-for): {why}"
        others = self._replaced_by(now)
        if others is not None:
            return others
        self.resume_at_s = now + min(self._pause_s, self._retry_for_s - waited_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return None

    def _replaced_by(self, now: float) -> str | None:
        """That the version asked for is no longer served while others are, once this has lasted."""
        if self._model.version is None:
            return None
        try:
            with Connection(self._model.url) as connection:
                versions = connection.served(_ASK_TIMEOUT_S).get(self._model.name, [])
        except ClientError:
            versions = []
        if not versions or self._model.version in versions:
            self._replaced_since_s = None
            return None
        self._replaced_since_s = self._replaced_since_s or now
        if now - self._replaced_since_s < _GONE_AFTER_S:
            return None
        return (
            f"{self._model.url}: model {self._model.name} has no version {self._model.version} any more; "
            f"it has {', '.join(map(str, versions))}"
        )
