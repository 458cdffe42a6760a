"""End a run on a signal: a checkpoint is written first, and the run folder can be resumed.

SIGTERM and Ctrl-C (SIGINT) end the run. So does SIGUSR1, which SLURM can be told to send before the time is up
(`#SBATCH --signal=USR1@120`), and SIGUSR2, which submitit has it send; the job is then put back into the queue.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from msh.training.launch import fate, requeue

log = logging.getLogger(__name__)

REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (signal.SIGTERM, signal.SIGINT, *REQUEUE)


class PreemptedError(SystemExit):
    """A signal ended the run; the exit code is 128 plus the signal's number, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class Preemption:
    """The signals that this process received.

    Attributes:
        received: the last one, or None; none replaces a signal after which the job goes back into the queue.
        postponed: whether a signal ends the run at its next checkpoint, instead of at once.
        before: signal to the handler that it had before this run.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.postponed = False
        self.before: dict[int, Any] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen to the signals; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received, self.postponed = None, False
        self.before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for signum, handler in self.before.items():
                signal.signal(signum, handler)

    def listen(self) -> None:
        """Handle the signals, also after another library has taken them over."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._take)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        pressed_twice = signum == self.received == signal.SIGINT
        if self.received not in REQUEUE:  # SLURM sends SIGTERM soon after
            self.received = signum
        if pressed_twice or not self.postponed:
            raise PreemptedError(self.received or signum)
        if signum == signal.SIGINT:
            log.warning("stopping at the next checkpoint; Ctrl-C again stops at once")

    def release(self) -> None:
        """End the run now if a signal came since it was postponed, and at once on later ones: all is saved.

        Raises:
            PreemptedError: a signal came.
        """
        self.postponed = False
        if self.received is not None:
            self.end()

    def end(self) -> None:
        """End the run, now that there is a checkpoint.

        Raises:
            PreemptedError: always.
        """
        raise PreemptedError(self.received or signal.SIGTERM)

    def requeue(self, signum: int) -> bool:
        """Put this SLURM job back into the queue if the signal asks for it, now that there is a checkpoint.

        Args:
            signum: the one that ended the run.
        Returns:
            Whether the queue starts the job again.
        Raises:
            BaseException: submitit, which started the job, puts it back: its handler of the signal counts timeouts, and
                exits.
        """
        if signum not in REQUEUE:
            return signum == signal.SIGTERM and fate() == "requeued"
        for other in self.before:
            signal.signal(other, signal.SIG_IGN)  # SLURM signals a requeued job at once: `scontrol` must not die of it
        if callable(handler := self.before.get(signum)):
            handler(signum, None)
        return requeue()


PREEMPTION = Preemption()
"""One for the whole process, as signals are."""
