"""Keep trackers from harming a run: the first error of one switches it off, with one warning."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pytorch_lightning.loggers import Logger

from msh.errors import without_secrets

log = logging.getLogger(__name__)

METHODS = ("use_data", "rewind_to", "save", "after_save_checkpoint", "finalize", "close")
"""Methods of loggers that may reach a network or a disk, besides those named `log_...`."""
LENGTH = 160
"""Most characters of an error's message in the warning."""


class Guard:
    """A tracker whose errors end nothing but itself. Signals pass through it.

    The logger itself stays as it is for callbacks, which find it in `trainer.loggers`: only its methods are wrapped.

    Args:
        name: the tracker's, as in the config's `logger`.
        logger: the tracker.

    Attributes:
        on: False once the tracker is switched off: its methods do nothing.
        strict: raise errors instead, as at the start of a run, where nothing is lost yet.
    """

    def __init__(self, name: str, logger: Logger) -> None:
        self.name, self.logger = name, logger
        self.on, self.strict = True, False
        self._depth = 0  # a method that calls others fails as a whole
        for method in dir(type(logger)):
            if (method in METHODS or method.startswith("log_")) and callable(getattr(type(logger), method)):
                setattr(logger, method, self._guarded(getattr(logger, method)))

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return None
            self._depth += 1
            handled = sys.exception()  # such as the signal that ends the run: not the cause of errors here
            try:
                return method(*args, **kwargs)
            except Exception as error:
                if self._depth > 1 or (self.strict and isinstance(error, ValueError | OSError)):
                    raise
                cause = cause_of(error, handled)
                if self.strict:
                    problem = f"logger.{self.name} cannot be used: {cause}; logger=csv trains without trackers"
                    raise ConnectionError(problem) from error
                self._switch_off(error, cause)
                return None
            finally:
                self._depth -= 1

        return call

    def _switch_off(self, error: Exception, cause: str) -> None:
        self.on = False
        log.debug("the error that switched %s off", self.name, exc_info=error)
        log.warning(
            "%s is switched off: %s. The run is not affected: metrics.csv has all values, and resuming the run logs "
            "those that %s lacks",
            self.name,
            cause,
            self.name,
        )

    def close(self, status: str) -> None:
        """End the run in the tracker: "success", "failed" or "stopped"; free what one that is off has started."""
        self.logger.finalize("success" if status == "success" else "failed")
        if hasattr(self.logger, "close"):
            self.logger.close(status)
        if not self.on and hasattr(self.logger, "abandon"):
            with suppress(Exception, SystemExit):  # W&B exits when its service has failed
                self.logger.abandon()


def cause_of(error: BaseException, handled: BaseException | None = None) -> str:
    """Return the first line of an error's message and of the first error behind it, shortened, without secrets.

    Args:
        error: raised.
        handled: the exception that was being handled before, and everything behind it, is left out.
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in (handled, *chain):
        chain.append(before)
    text = _line(error) if len(chain) == 1 else f"{_line(error)} ({_line(chain[-1])})"
    return without_secrets(text)


def _line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return line if len(line) <= LENGTH else f"{line[:LENGTH]}..."
