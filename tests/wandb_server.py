"""A W&B server that knows one run: just enough for logging online, resuming and `wandb sync`."""

import gzip
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

PROJECT = {"id": "p", "name": "msh", "entity": {"id": "e", "name": "me"}}


def run_of(history):
    return {"id": "r", "name": "0a1b2c3d", "displayName": "toy", "project": PROJECT, "historyLineCount": len(history)}


def answer(operation, history):
    """What the server says to a GraphQL operation."""
    if operation == "UpsertBucket":
        return {"data": {"upsertBucket": {"bucket": run_of(history), "inserted": not history}}}
    if operation == "Viewer":  # asked whether the key is valid, before a table is logged
        return {"data": {"viewer": PROJECT["entity"] | {"username": "me", "entity": "me", "flags": "{}"}}}
    if operation != "RunResumeStatus":
        return {"data": {}, "errors": [{"message": f"this server has no {operation}"}]}
    if not history:
        return {"data": {"model": PROJECT | {"bucket": None}}}
    tail = {"historyTail": json.dumps(history[-1:]), "eventsTail": "[]", "logLineCount": 0, "eventsLineCount": 0}
    more = {"summaryMetrics": history[-1], "config": "{}", "wandbConfig": json.dumps({"t": 1}), "tags": []}
    return {"data": {"model": PROJECT | {"bucket": run_of(history) | tail | more}}}


def take(history, part):
    """Put the lines of a file's part at their place."""
    for place, line in enumerate(part["content"], part["offset"]):
        history[place : place + 1] = [line]


@contextmanager
def serving():
    """(address, rows): the rows are what the run's history holds on the server, as dicts, whenever it is called."""
    history = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            request = json.loads(body) if body.startswith(b"{") else {}
            if part := (request.get("files") or {}).get("wandb-history.jsonl"):
                take(history, part)
            said = {} if "files" in request else answer(request.get("operationName"), history)
            self.say(json.dumps(said).encode())

        def do_GET(self):
            self.say(b"{}")

        def say(self, content):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", lambda: [json.loads(line) for line in history]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
