"""Answer requests of one task that arrive together in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from msh.inference.predictions import Predictions

Answer = Callable[[Sequence[Any]], Sequence[Predictions | Exception]]
QUIET = 0.1
"""Part of the longest wait after which requests wait no more, if no other one has arrived in it."""


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request that waits for its batch.

    Attributes:
        inputs: raw ones, several.
        answer: becomes the predictions.
    """

    inputs: Any
    answer: asyncio.Future[Predictions]


class Computer:
    """Compute batches one after another, in a thread; a batch is put together when its turn comes.

    Args:
        executor: has one thread, as torch itself uses all cores for a batch.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.turn = asyncio.Lock()  # first come, first served


class Batcher:
    """Collect a task's requests for a short time, and answer them together. It belongs to one event loop.

    Requests wait until none has arrived for a tenth of `seconds`, but no longer than `seconds`, and until the computer
    is free; all that have arrived by then are answered together.

    Args:
        compute: answers several requests' inputs together: with predictions, or the error of a request.
        computer: where to compute.
        size: most inputs of several requests in one batch.
        seconds: the longest wait for others; 0: each is answered alone.
    """

    def __init__(self, compute: Answer, computer: Computer, size: int, seconds: float) -> None:
        self.compute, self.computer, self.size, self.seconds = compute, computer, size, seconds
        self.waiting: list[Waiting] = []
        self.latest = 0.0  # time at which the first of them has waited long enough
        self.timer: asyncio.TimerHandle | None = None
        self.running: set[asyncio.Task[None]] = set()
        self.queued = False

    async def answer(self, inputs: Any) -> Predictions:
        """Answer raw inputs, with those of other requests where they fit together.

        Raises:
            Exception: what `compute` returned for this request, or raised for all.
        """
        loop = asyncio.get_running_loop()
        now, request = loop.time(), Waiting(inputs, loop.create_future())
        if not self.waiting:
            self.latest = now + self.seconds
        self.waiting.append(request)
        if self.seconds == 0 or sum(len(other.inputs) for other in self.waiting) >= self.size:
            self._queue()
        elif not self.queued:
            if self.timer is not None:
                self.timer.cancel()
            self.timer = loop.call_at(min(self.latest, now + QUIET * self.seconds), self._queue)
        return await request.answer

    def _queue(self) -> None:
        """Compute what waits when the computer is free."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.waiting and not self.queued:
            self.queued = True
            task = asyncio.get_running_loop().create_task(self._run())
            self.running.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self.running.discard)

    async def _run(self) -> None:
        async with self.computer.turn:
            self.queued = False
            batch = self._next()
            self._queue()  # the others have waited long enough
            if not batch:
                return
            try:
                found = await asyncio.get_running_loop().run_in_executor(
                    self.computer.executor, self.compute, [request.inputs for request in batch]
                )
            except Exception as error:  # of the network: each request reports it
                found = [error] * len(batch)
        for request, predictions in zip(batch, found, strict=True):
            if request.answer.done():
                continue
            if isinstance(predictions, Exception):
                request.answer.set_exception(predictions)
            else:
                request.answer.set_result(predictions)

    def _next(self) -> list[Waiting]:
        """Take the requests of the next batch, at least one, without those whose clients no longer wait."""
        waiting = [request for request in self.waiting if not request.answer.done()]
        number, inputs = 1, sum(len(request.inputs) for request in waiting[:1])
        while self.seconds > 0 and number < len(waiting) and inputs + len(waiting[number].inputs) <= self.size:
            inputs += len(waiting[number].inputs)
            number += 1
        self.waiting = waiting[number:]
        return waiting[:number]
