"""A SLURM of one node on loopback, for tests: all its files are in one folder."""

import os
import re
import shutil
import socket
import subprocess
import time
from getpass import getuser
from pathlib import Path

SYSTEM = "/usr/sbin:/sbin"
"""Where Debian puts daemons, which is not on everyone's PATH."""
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
JobRequeue=1
ReturnToService=2
KillWait=20
MinJobAge=3600
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing():
    """Names of the commands that a cluster needs and this machine lacks."""
    return [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:{SYSTEM}") is None]


class Cluster:
    """A running cluster.

    Args:
        folder: for its files; the path must be short, as sockets are in it.
        cpus: that the node claims; there may be fewer.
    """

    def __init__(self, folder: Path, cpus: int) -> None:
        self.folder, self.daemons = folder, []
        folder.chmod(0o755)  # munged refuses folders that others can write
        for name in ("controller", "node", "keys"):
            (folder / name).mkdir(mode=0o700)
        (folder / "keys" / "munge.key").write_bytes(os.urandom(1024))
        (folder / "keys" / "munge.key").chmod(0o600)
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\n")
        host = socket.gethostname().partition(".")[0]
        ports = free_ports(2)
        config = CONFIG.format(host=host, ports=ports, user=getuser(), folder=folder, cpus=cpus)
        (folder / "slurm.conf").write_text(config)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")} | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:{SYSTEM}",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def start(self) -> None:
        """Start the daemons, and wait until the node is idle."""
        keys, socket_path = self.folder / "keys", self.folder / "munge.socket"
        self._daemon(
            *("munged", "--foreground", "--force", f"--key-file={keys / 'munge.key'}", f"--socket={socket_path}"),
            *(f"--pid-file={keys / 'pid'}", f"--seed-file={keys / 'seed'}", f"--log-file={keys / 'log'}"),
        )
        wait_until(socket_path.exists, 10, self.logs)
        self._daemon("slurmctld", "-D", "-i")
        wait_until(lambda: "UP" in self.run("scontrol", "ping", check=False), 20, self.logs)
        self._daemon("slurmd", "-D")
        wait_until(lambda: self.run("sinfo", "-h", "-o", "%T", check=False).strip() == "idle", 40, self.logs)

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.out", "wb") as out:
            process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self.daemons.append(process)

    def stop(self) -> None:
        """Cancel all jobs, and stop the daemons, the last one first."""
        self.run("scancel", "--full", f"--user={getuser()}", check=False)
        deadline = time.monotonic() + 30
        while self.run("squeue", "-h", check=False).strip() and time.monotonic() < deadline:
            time.sleep(0.3)
        for process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def logs(self) -> str:
        """The ends of the daemons' logs, for messages."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in files)

    def run(self, *command: str, check: bool = True, **options) -> str:
        """Run a command on the cluster; returns what it printed."""
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    def submit(self, folder: Path, *lines: str, options=()) -> str:
        """Submit a batch script that runs in a folder; its output goes to FOLDER/out-<job>.txt. Returns the job."""
        script = folder / f"job-{time.monotonic_ns()}.sh"
        script.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        where = (
            f"--chdir={folder}",
            f"--output={folder}/out-%A_%a.txt" if _is_array(options) else "--output=out-%j.txt",
        )
        printed = self.run("sbatch", "--parsable", "--open-mode=append", *where, *options, str(script), cwd=folder)
        return printed.strip()

    def show(self, job: str) -> dict[str, str]:
        """A job's fields, as `scontrol show job` prints them."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "show", "job", job)))

    def state(self, job: str) -> str:
        """A job's state, such as RUNNING."""
        return self.show(job)["JobState"]

    def wait(self, job: str, seconds: float = 500) -> tuple[str, str]:
        """Wait for a job's end; returns (state, exit code as "code:signal")."""
        wait_until(lambda: self.state(job) in ENDED, seconds, lambda: f"{self.show(job)}\n{self.logs()}")
        shown = self.show(job)
        return shown["JobState"], shown["ExitCode"]


def _is_array(options) -> bool:
    return any(option.startswith("--array") for option in options)


def wait_until(condition, seconds: float, describe=lambda: "") -> None:
    """Wait for a condition; fail with a description."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
