"""End a run on a signal: a checkpoint is written first, and the run folder can be resumed.

SIGTERM and Ctrl-C (SIGINT) end the run. So does SIGUSR1, which SLURM can be told to send before the time is up
(`#SBATCH --signal=USR1@120`); within SLURM the job is then put back into the queue.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

REQUEUE = signal.SIGUSR1
SIGNALS = (signal.SIGTERM, signal.SIGINT, REQUEUE)


class PreemptedError(SystemExit):
    """A signal ended the run; the exit code is 128 plus the signal's number, as in shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class Preemption:
    """The signals that this process received.

    Attributes:
        received: the last one, or None.
        postponed: whether a signal ends the run at its next checkpoint, instead of at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.postponed = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen to the signals; only a process's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received, self.postponed = None, False
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def listen(self) -> None:
        """Handle the signals, also after another library has taken them over."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._take)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        pressed_twice = signum == self.received == signal.SIGINT
        self.received = signum
        if pressed_twice or not self.postponed:
            raise PreemptedError(signum)
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


PREEMPTION = Preemption()
"""One for the whole process, as signals are."""


def requeue() -> None:
    """Put this SLURM job back into the queue; outside SLURM, do nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None:
        return
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("job %s could not be put back into the queue: %s", job, error)
