"""Serve a network's tasks over HTTP: predictions, facts about the tasks, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import msh
from msh.errors import Problems, at_least, invalid, requirement
from msh.inference.batching import Batcher, Computer
from msh.inference.predictions import AnyPredictions, Prediction, Predictions
from msh.inference.predictor import Predictor, TaskInfo
from msh.inference.requests import describe_input, inputs_from_json
from msh.tasks.options import TOKEN_KINDS

SMALL = 2**16
"""Bytes of inputs that are read at once; a thread reads more, so that other requests do not wait."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        batch_milliseconds: how long a request waits at most for others of its task; 0: each is answered alone.
        max_bytes: of a request's body.
        max_inputs: of a request.
        timeout: seconds until a request is given up.
    """

    batch_milliseconds: float = 5
    max_bytes: int = 32 * 2**20
    max_inputs: int = 1000
    timeout: float = 30

    def __post_init__(self) -> None:
        with Problems() as problems:
            if not 0 <= self.batch_milliseconds <= 60_000:
                problems.add(requirement("batch_milliseconds", "from 0 to 60000", self.batch_milliseconds))
            problems.check(at_least, "max_bytes", 1, self.max_bytes)
            problems.check(at_least, "max_inputs", 1, self.max_inputs)
            if not 0 < self.timeout <= 86_400:
                problems.add(requirement("timeout", "above 0 and at most 86400", self.timeout))


class Metrics:
    """Counts for Prometheus, by task."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("msh_requests", "Requests for predictions", ["task"], registry=self.registry)
        self.errors = Counter("msh_errors", "Requests refused or failed", ["task", "status"], registry=self.registry)
        self.seconds = Histogram("msh_request_seconds", "Seconds per request", ["task"], registry=self.registry)
        self.batches = Counter("msh_batches", "Batches computed", ["task"], registry=self.registry)


class BodyLimit:
    """Refuse bodies that are too large, without reading them to the end.

    Args:
        app: reads the bodies.
        most: bytes of a body.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its body's bytes."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most:
                raise HTTPException(413, f"the body must be at most {self.most} bytes")
            return message

        await self.app(scope, counted, send)


class Server:
    """Answer requests with a predictor.

    Args:
        predictor: holds the tasks.
        limits: of requests.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits, self.metrics = predictor, limits, Metrics()
        self.computing = ThreadPoolExecutor(1, "compute")
        self.computer = Computer(self.computing)
        self.batchers = {name: self._batcher(info) for name, info in predictor.tasks.items()}

    def _batcher(self, info: TaskInfo) -> Batcher:
        batches = self.metrics.batches.labels(info.name)

        def compute(requests: Sequence[Any]) -> list[Predictions | Exception]:
            batches.inc()
            return [_refusal(answer) for answer in self.predictor.answer(info.name, requests)]

        return Batcher(compute, self.computer, info.computing.batch_size, self.limits.batch_milliseconds / 1000)

    async def predict(self, task: str, request: Request, top: int | None) -> dict[str, Any]:
        """Answer a request, and count it.

        Raises:
            HTTPException: the request is refused, or took too long.
        """
        if task not in self.predictor.tasks:
            raise HTTPException(404, str(_unknown(task, list(self.predictor.tasks))))
        return await self._counted(task, self.answer(self.predictor.tasks[task], request, top))

    async def route(self, request: Request, top: int | None) -> dict[str, Any]:
        """Answer a request without a task, each input by the task that the router chooses, and count it.

        Raises:
            HTTPException: the request is refused, or took too long.
        """
        return await self._counted("", self._routed(request, top))

    async def _counted(self, task: str, answer: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        started = time.perf_counter()
        self.metrics.requests.labels(task).inc()
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await answer
        except TimeoutError as error:
            self.metrics.errors.labels(task, "504").inc()
            raise HTTPException(504, f"no answer within {self.limits.timeout:g} seconds") from error
        except Exception as error:
            self.metrics.errors.labels(task, str(getattr(error, "status_code", 500))).inc()
            raise
        finally:
            self.metrics.seconds.labels(task).observe(time.perf_counter() - started)

    async def answer(self, info: TaskInfo, request: Request, top: int | None) -> dict[str, Any]:
        """Answer a request to a known task.

        Raises:
            HTTPException: the request is refused.
        """
        if top is not None and (info.outputs.has_values or info.kind in TOKEN_KINDS):
            what = "values" if info.outputs.has_values else "a label for each word"
            raise HTTPException(
                422, f"top: task {info.name!r} is a {info.outputs.called}: it has {what}, not probabilities"
            )
        inputs = await self._inputs([info], request)
        if info.kind in TOKEN_KINDS:  # a text may have several windows: requests are not batched together
            found = await self._computed(inputs, info.name)
            return {"task": info.name, "predictions": [_as_json(answer, top) for answer in found]}
        try:
            if (len(inputs) if isinstance(inputs, bytes) else sum(map(len, inputs))) > SMALL:
                raw = await asyncio.to_thread(lambda: self.predictor.read(info.name, self._raw(info, inputs)))
            else:
                raw = self._raw(info, inputs)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        found = await self.batchers[info.name].answer(raw)
        _check_finite(found)
        return {"task": info.name, "predictions": [_as_json(answer, top) for answer in found]}

    async def _routed(self, request: Request, top: int | None) -> dict[str, Any]:
        """Answer a request without a task, apart from others.

        Raises:
            HTTPException: the request is refused.
        """
        inputs = await self._inputs([*self.predictor.tasks.values()], request)
        found = await self._computed(inputs)
        predictions = [{"task": answer.task, **_as_json(answer, top)} for answer in found]
        return {"predictions": predictions, "validated": getattr(found, "validated", True)}

    async def _computed(self, inputs: Any, task: str | None = None) -> AnyPredictions:
        """Answer the inputs of a request apart from others', with a task or with those that the router chooses."""
        try:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self.computing, self._answered, inputs, task)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        _check_finite(found)
        return found

    def _answered(self, inputs: Any, task: str | None) -> AnyPredictions:
        """Read inputs as a task does, or as the first kind that they can be, and answer them, in a thread."""
        if task is not None:
            raw = inputs_from_json(self.predictor.tasks[task].steps, inputs)
            self._check_number(raw)
            answers: AnyPredictions = self.predictor.predict(task, raw)
            return answers
        kinds: dict[str, list[TaskInfo]] = {}
        for info in self.predictor.tasks.values():
            kinds.setdefault(info.steps[0].step, []).append(info)
        raw, kind, reasons = inputs, "images", []
        if isinstance(inputs, bytes):
            for kind, infos in kinds.items():
                try:
                    raw = inputs_from_json(infos[0].steps, inputs)
                    break
                except ValueError as error:
                    reasons.append(f"{kind}: {error}")
            else:
                raise ValueError("\n".join(reasons))
        self._check_number(raw)
        return self.predictor.predict(raw, among=[info.name for info in kinds[kind]])

    async def _inputs(self, infos: Sequence[TaskInfo], request: Request) -> Any:
        """Return the inputs of a request: JSON as bytes, or the content of uploaded images."""
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind == "application/json":
            return await request.body()
        if kind != "multipart/form-data":
            raise HTTPException(
                415, f"content-type must be application/json or multipart/form-data, got {kind[:100]!r}"
            )
        if not any(info.steps[0].step == "images" for info in infos):
            raise HTTPException(415, f"task {infos[0].name!r} reads no images: send application/json")
        most = self.limits.max_inputs
        async with request.form(max_files=most, max_fields=0, max_part_size=self.limits.max_bytes) as form:
            return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]

    def _raw(self, info: TaskInfo, inputs: Any) -> Any:
        """Return a request's raw inputs, which are JSON, or the content of uploaded images.

        Raises:
            ValueError: naming what is wrong with them.
        """
        raw = inputs_from_json(info.steps, inputs) if isinstance(inputs, bytes) else inputs
        self._check_number(raw)
        return raw

    def _check_number(self, raw: Any) -> None:
        if not 1 <= len(raw) <= self.limits.max_inputs:
            raise invalid("inputs", f"from 1 to {self.limits.max_inputs} inputs", len(raw))

    def tasks(self) -> list[dict[str, Any]]:
        """Describe the tasks."""
        return [_described(info) for info in self.predictor.tasks.values()]


def _unknown(task: str, tasks: list[str]) -> ValueError:
    return invalid("task", f"one of {', '.join(tasks)}", task[:100], tasks)


def _invalid_parameter(error: Mapping[str, Any]) -> str:
    """Say what is wrong with a parameter of a request, as FastAPI describes it; all of them are whole numbers."""
    least = error.get("ctx", {}).get("ge")
    bound = "a whole number" if least is None else f">= {least}"
    return requirement(str(error["loc"][-1]), bound, error["input"])


def _described(info: TaskInfo) -> dict[str, Any]:
    facts = {"name": info.name, "kind": info.kind, "classes": list(info.names), "unit": info.unit}
    return {**facts, "input": describe_input(info.steps)}


def _refusal(answer: Predictions | Exception) -> Predictions | Exception:
    """Turn the reason why inputs are refused into the response that says so."""
    return HTTPException(422, str(answer)) if isinstance(answer, ValueError) else answer


def _check_finite(found: AnyPredictions) -> None:
    """Refuse answers that JSON cannot hold."""
    for number, answer in enumerate(found):
        if not all(map(math.isfinite, (*answer.probabilities.values(), *answer.values.values()))):
            reason = "its numbers are too large or not finite"
            raise HTTPException(422, f"task {answer.task!r}, input {number}: {reason}")


def _as_json(answer: Prediction, top: int | None) -> dict[str, Any]:
    if answer.values:
        return {"values": answer.values}
    if answer.words:
        return {"words": answer.words, "labels": answer.label}
    if top is None:
        return {"label": answer.label, "probabilities": answer.probabilities}
    falling = sorted(answer.probabilities.items(), key=lambda item: -item[1])
    return {"label": answer.label, "probabilities": dict(falling[:top])}


def _examples(tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Write the OpenAPI description of bodies, with an example for each task."""
    examples = {t["name"]: {"summary": t["name"], "value": {"inputs": [t["input"]["example"]]}} for t in tasks}
    body = {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array", "items": {}}}}
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    content: dict[str, Any] = {"application/json": {"schema": body, "examples": examples}}
    if any(task["input"]["kind"] == "images" for task in tasks):
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": {"files": files}}}
    return {"requestBody": {"required": True, "content": content}}


def make_app(predictor: Predictor, limits: Limits | None = None, api_key: str | None = None) -> FastAPI:
    """Make the application that serves a predictor's tasks.

    Args:
        predictor: holds the tasks.
        limits: of requests; None: the defaults.
        api_key: what clients must send as X-API-Key, except for /health; None: nothing.
    """
    limits = limits or Limits()
    server = Server(predictor, limits)
    tasks = server.tasks()

    async def check_key(request: Request) -> None:
        given = request.headers.get("x-api-key", "").encode("latin-1")  # the bytes that were sent
        if api_key is not None and not hmac.compare_digest(given, api_key.encode()):
            raise HTTPException(401, "the header X-API-Key must have the server's key")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.computing.shutdown()

    pages = {} if api_key is None else {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title="msh", version=msh.__version__, lifespan=lifespan, **pages)  # type: ignore[arg-type]
    app.add_middleware(BodyLimit, most=limits.max_bytes)

    @app.exception_handler(RequestValidationError)
    async def refuse(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": "; ".join(map(_invalid_parameter, error.errors()))}, 422)

    routes = APIRouter(dependencies=[Depends(check_key)])

    @routes.post("/predict/{task:path}", openapi_extra=_examples(tasks), summary="Answer inputs with a task")
    async def predict(task: str, request: Request, top: Annotated[int | None, Query(ge=1)] = None) -> JSONResponse:
        return JSONResponse(await server.predict(task, request, top))  # FastAPI would check it value by value

    @routes.post("/predict", openapi_extra=_examples(tasks), summary="Answer inputs, each with the task it fits best")
    async def route(request: Request, top: Annotated[int | None, Query(ge=1)] = None) -> JSONResponse:
        return JSONResponse(await server.route(request, top))

    @routes.get("/tasks", summary="Describe the tasks and their inputs")
    async def list_tasks() -> list[dict[str, Any]]:
        return tasks

    @routes.get("/metrics", summary="Count requests, errors and seconds, for Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/health", summary="Tell that the server runs")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    app.include_router(routes)
    return app
