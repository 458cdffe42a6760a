"""Start commands in processes forked from one that has imported what a training needs: seconds sooner each.

They are processes as others are, with the same ends: only the time to import is saved.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from running import ROOT, finish

USUAL = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
MODULES = ["msh.cli.train", "msh.training.run", "msh.tasks.bundled", "msh.backbones.mlp", "sklearn.datasets", "pandas"]
MODULES += ["torch.distributed.launcher.api", "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend"]


@cache
def server(**environment):
    """Start the process that forks, with more in its environment; it ends with this one."""
    environment = os.environ | USUAL | environment
    found = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(found.communicate)
    return found


def ask(server, **request):
    """Send a server a request; returns its answer."""
    print(json.dumps(request), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


class Forked:
    """A process as `subprocess.Popen` describes one, its output and errors together."""

    def __init__(self, arguments, cwd, environment):
        file, self.printed = tempfile.mkstemp()
        os.close(file)
        self.returncode, self.text, self.server = None, "", server(**environment)
        environment = os.environ | USUAL | environment
        self.pid = ask(self.server, arguments=arguments, cwd=str(cwd), environment=environment, printed=self.printed)

    def poll(self):
        if self.returncode is None:
            self.returncode = ask(self.server, pid=self.pid)
        return self.returncode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=240):
        """(what it printed, None), once it has ended."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        if Path(self.printed).exists():
            self.text = Path(self.printed).read_text()
            Path(self.printed).unlink()
        return self.text, None


def start(script, *arguments, cwd, **environment):
    """A script of the checkout, or the command `msh`, in a process of its own; returns the process."""
    path = Path(sys.executable).with_name("msh") if script == "msh" else ROOT / script
    return Forked([str(path), *map(str, arguments)], cwd, environment)


def run(script, *arguments, cwd, **environment):
    """As `start`, to its end; returns what it printed."""
    code, printed = finish(start(script, *arguments, cwd=cwd, **environment))
    assert code == 0, printed
    return printed


def run_ranks(processes, script, *arguments, cwd):
    """A script of the checkout in several processes that train together, to its end; returns what they printed."""
    ranks = start("tests/integration/launching.py", processes, ROOT / script, *arguments, cwd=cwd)
    code, printed = finish(ranks, 3000)
    assert code == 0, printed
    return printed


def serve():
    """Answer requests: an exit code or None, or the id of a new process, in which the request is returned."""
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            ended, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(json.dumps(answer), flush=True)
    sys.exit()


def become(began, arguments, cwd, environment, printed):
    """Run a script in this process as an interpreter would that is started with it.

    Args:
        began: environment with which this process began: variables that the imported modules set stay.
        arguments: the script, and its own.
        cwd: working directory.
        environment: of the process.
        printed: file for its output and errors.
    """
    output = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), output, output]):
        os.dup2(file, number)
    os.chdir(cwd)
    for name in began.keys() - environment.keys():
        os.environ.pop(name, None)
    os.environ.update(dict(environment.items() - began.items()))
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    began = dict(os.environ)
    gc.disable()
    for name in MODULES:
        importlib.import_module(name)
    gc.freeze()  # forked processes need not look through the modules for garbage
    gc.enable()
    atexit.register(gc.unfreeze)  # else libraries report what is left
    become(began, **serve())
