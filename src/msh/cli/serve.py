"""Serve a trained network over HTTP."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import socket
import sys
from argparse import ArgumentParser, Namespace

from msh.cli.own import add_allow, allowed

KEY = "MSH_API_KEY"
GRACE = 5
"""Seconds beyond --timeout that clients have to read answers after SIGTERM."""


def arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="SOURCE", help="run folder, network or subnetwork file, or hf://user/name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    parser.add_argument("--base", help="network file with the tasks that a subnetwork file's task reads")
    add_allow(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...; default: cpu")
    parser.add_argument(
        "--batch-milliseconds",
        type=float,
        default=5,
        metavar="MS",
        help="longest wait of a request for others of its task, to be answered together; 0: not at all; default: 5",
    )
    parser.add_argument(
        "--max-bytes", type=int, default=32 * 2**20, metavar="N", help="of a request's body; default: 32 MiB"
    )
    parser.add_argument("--max-inputs", type=int, default=1000, metavar="N", help="of a request; default: 1000")
    parser.add_argument(
        "--timeout", type=float, default=30, metavar="SECONDS", help="until a request is given up; default: 30"
    )


def serve(given: Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; requests in flight are finished.

    Raises:
        FileNotFoundError: a file is missing.
        OSError: the address cannot be used.
        ValueError: an argument or a file is invalid, or a package is missing.
    """
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn

        from msh.inference.serving import Limits, make_app
    except ImportError as error:
        raise ValueError(f"msh serve needs further packages ({error.name}): pip install 'msh[serve]'") from error
    from msh.errors import Problems
    from msh.inference.predictor import load

    with Problems() as problems:
        limits = problems.check(Limits, given.batch_milliseconds, given.max_bytes, given.max_inputs, given.timeout)
        problems.check(_check_port, given.port)
        key = problems.check(_key)
    predictor = load(given.source, base=given.base, classes=allowed(given.allow), device=given.device, lean=True)
    app = make_app(predictor, limits, key)
    listening = _listen(given.host, given.port)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=int(given.timeout) + GRACE)
    # Before uvicorn listens for signals, and when it raises one again after the last answer.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host = f"[{given.host}]" if ":" in given.host else given.host
    print(f"serving {', '.join(predictor.tasks)} on http://{host}:{listening.getsockname()[1]}", flush=True)
    gc.collect()
    gc.freeze()  # all that is loaded by now stays: a collection of it would hold up requests for tenths of a second
    atexit.register(gc.unfreeze)  # or libraries report what they could not free at the end
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _check_port(port: int) -> None:
    from msh.errors import invalid

    if not 0 <= port < 2**16:
        raise invalid("--port", f"from 0 to {2**16 - 1}", port)


def _key() -> str | None:
    """Return the key that clients must send; None: the environment has none."""
    key = os.environ.get(KEY)
    if key is not None and not key.strip():
        raise ValueError(f"{KEY} is set and empty: set it to a key, or unset it to serve without one")
    return key


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on --host {host} --port {port}: {error.strerror or error}") from error
