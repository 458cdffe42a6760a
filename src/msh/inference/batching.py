"""Answer requests of one task that arrive together in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from torch import Tensor

from msh.inference.predictions import Predictions

Answer = Callable[[Sequence[Tensor]], list[Predictions]]


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request that waits for its batch.

    Attributes:
        inputs: prepared, (examples, *input shape).
        answer: becomes the predictions.
    """

    inputs: Tensor
    answer: asyncio.Future[Predictions]


class Batcher:
    """Collect a task's requests for a short time, and answer them together. It belongs to one event loop.

    Args:
        compute: answers several requests' prepared inputs together.
        executor: where to compute.
        size: most inputs of several requests in one batch.
        seconds: how long the first request waits for others; 0: each is answered alone.
    """

    def __init__(self, compute: Answer, executor: Executor, size: int, seconds: float) -> None:
        self.compute, self.executor, self.size, self.seconds = compute, executor, size, seconds
        self.waiting: list[Waiting] = []
        self.timer: asyncio.TimerHandle | None = None
        self.running: set[asyncio.Task[None]] = set()

    async def answer(self, inputs: Tensor) -> Predictions:
        """Answer prepared inputs (examples, *input shape), with those of other requests where they fit together."""
        loop = asyncio.get_running_loop()
        request = Waiting(inputs, loop.create_future())
        if sum(len(other.inputs) for other in self.waiting) + len(inputs) > self.size:
            self._start()
        self.waiting.append(request)
        if self.seconds == 0 or sum(len(other.inputs) for other in self.waiting) >= self.size:
            self._start()
        elif self.timer is None:
            self.timer = loop.call_later(self.seconds, self._start)
        return await request.answer

    def _start(self) -> None:
        """Compute what waits."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        batch, self.waiting = self.waiting, []
        if batch:
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self.running.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self.running.discard)

    async def _run(self, batch: list[Waiting]) -> None:
        try:
            found = await asyncio.get_running_loop().run_in_executor(self.executor, self._computed, batch)
        except Exception as error:  # of the network: each request reports it
            for request in batch:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        for request, predictions in found:
            if not request.answer.done():
                request.answer.set_result(predictions)

    def _computed(self, batch: list[Waiting]) -> list[tuple[Waiting, Predictions]]:
        """Answer the requests whose clients still wait."""
        batch = [request for request in batch if not request.answer.done()]
        if not batch:
            return []
        return list(zip(batch, self.compute([request.inputs for request in batch]), strict=True))
