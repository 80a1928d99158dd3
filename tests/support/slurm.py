"""A private Slurm for tests: munged, slurmctld and slurmd of one node or two, in one folder, stopped without leftovers.

    with private_slurm(tmp_path) as slurm:
        job = slurm.run("sbatch", "--parsable", "array.sbatch").strip()
        slurm.wait_for("no job is left", lambda: not slurm.queue())

With `nodes=2` it has a second node, localhost, on the same machine; both names lead there, so that ranks on two
nodes find each other. It needs neither root nor a cluster: configuration, keys, state, logs and sockets lie in the
folder, ports are free ones, and `slurm.environment` leads every client to it. Debian's slurm-wlm brings all that it
needs. No cgroups are used, so it runs in containers too; memory is therefore not confined.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # daemons are not on everyone's PATH
START_S = 60.0
STOP_S = 20.0

CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={control_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=2
OverTimeLimit=0
MinJobAge=300
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4096 State=UNKNOWN\n"


@dataclass
class PrivateSlurm:
    """A running Slurm.

    Attributes:
        folder: Everything of it.
        environment: Of processes that should use it.
    """

    folder: Path
    environment: dict[str, str]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, *command: str) -> str:
        """Runs a client and gives what it prints; a failure shows both outputs."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def queue(self) -> list[tuple[str, str]]:
        """Job, as in 12_3, and state of all that is not over; array tasks one by one."""
        command = ["squeue", "--noheader", "--array", "--format=%i %T"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode == -signal.SIGPIPE:  # slurmctld has closed the connection, as it does when a node goes down
            return self.queue()
        assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
        return [(job, state) for job, _, state in (line.partition(" ") for line in done.stdout.splitlines())]

    def job(self, job: str) -> dict[str, str]:
        """What scontrol says of a job, also for some minutes after its end: JobState, ExitCode, Restarts, …."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait_for(self, what: str, is_so: Callable[[], object], *, timeout_s: float = 120.0) -> None:
        """Waits until something is so; fails with the daemons' last words if it never is."""
        end = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < end, f"not within {timeout_s:.0f} s: {what}\n{self.queue()}\n{self.last_words()}"
            time.sleep(0.1)

    def lose(self, node: str) -> None:
        """As if the power of a node went: its slurmd and the processes of all jobs are killed, and it is down.

        Jobs must run on this node alone.
        """
        daemon = next(one for one in self.daemons if isinstance(one.args, tuple) and one.args[-2:] == ("-N", node))
        self.daemons.remove(daemon)
        daemon.kill()
        daemon.wait()
        for process in self._processes_of_jobs():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def bring_back(self, node: str) -> None:
        """Starts the node again."""
        _start(self, "slurmd", "-D", "-c", "-N", node)
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        state = ("sinfo", "--noheader", f"--nodes={node}", "--format=%T")
        self.wait_for(f"{node} is idle", lambda: self.run(*state).strip() == "idle", timeout_s=START_S)

    def _processes_of_jobs(self) -> list[int]:
        """What slurmd has started, and all below it."""
        mine, of_job = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode(), b"SLURM_JOB_ID="
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                is_step = (folder / "comm").read_text().startswith("slurmstepd")
                if mine in environment and (is_step or any(one.startswith(of_job) for one in environment)):
                    found.append(int(folder.name))
        return found

    def last_words(self) -> str:
        """The ends of all logs."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}:\n" + "\n".join(log.read_text().splitlines()[-15:]) for log in logs)


def skip_without_slurm() -> None:
    """Reports a test as not run where Slurm is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"not run: slurm is not installed (no {', '.join(missing)}; Debian and Ubuntu: slurm-wlm)")


@contextmanager
def private_slurm(*, cpus: int = 2, nodes: int = 1) -> Iterator[PrivateSlurm]:
    """Starts a Slurm and stops it, with every job that is left.

    Args:
        cpus: What each node claims to have; more than the machine has is allowed.
        nodes: 1 or 2.
    """
    skip_without_slurm()
    with ExitStack() as stack:
        # Not below tmp_path: a socket's path may have 107 bytes, and the key must lie where others cannot write.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        slurm = PrivateSlurm(folder, os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH})
        for name in [name for name in slurm.environment if name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))]:
            if name != "SLURM_CONF":  # of a job that runs the tests
                del slurm.environment[name]
        names = [_host(), "localhost"][:nodes]
        _configure(folder, names, cpus=cpus)
        stack.callback(_stop, slurm)
        _start_munge(slurm)
        _start(slurm, "slurmctld", "-D", "-c")
        for name in names:
            _start(slurm, "slurmd", "-D", "-c", "-N", name)
        slurm.wait_for("all nodes are idle", lambda: _node_states(slurm) == ["idle"] * nodes, timeout_s=START_S)
        yield slurm


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _configure(folder: Path, nodes: list[str], *, cpus: int) -> None:
    (folder / "state").mkdir(mode=0o755)
    for node in nodes:
        (folder / "spool" / node).mkdir(mode=0o755, parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = _host()
    control_port, *node_ports = _free_ports(1 + len(nodes))
    text = CONFIGURATION.format(host=host, user=getpass.getuser(), folder=folder, control_port=control_port)
    for node, port in zip(nodes, node_ports, strict=True):
        text += NODE.format(node=node, host=host, port=port, cpus=cpus)
    (folder / "slurm.conf").write_text(text)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _start_munge(slurm: PrivateSlurm) -> None:
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={slurm.folder}/munge.{suffix}" for option, suffix in files.items()]
    _start(slurm, "munged", "--foreground", "--force", "--num-threads=2", *options)
    path = slurm.folder / "munge.socket"
    end = time.monotonic() + START_S
    while not path.exists():
        assert time.monotonic() < end, f"munged does not listen\n{slurm.last_words()}"
        time.sleep(0.05)


def _start(slurm: PrivateSlurm, *command: str) -> None:
    with (slurm.folder / f"{command[0]}.out.log").open("ab") as log:
        daemon = subprocess.Popen(command, env=slurm.environment, stdout=log, stderr=log, start_new_session=True)
    slurm.daemons.append(daemon)


def _node_states(slurm: PrivateSlurm) -> list[str]:
    dead = [daemon for daemon in slurm.daemons if daemon.poll() is not None]
    assert not dead, f"{dead[0].args}: ended with {dead[0].returncode}\n{slurm.last_words()}"
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    return subprocess.run(command, env=slurm.environment, capture_output=True, text=True).stdout.split()


def _stop(slurm: PrivateSlurm) -> None:
    """Cancels what runs, so that no step outlives its slurmd, then ends the daemons, the last started first."""
    if len(slurm.daemons) > 2:
        subprocess.run(["scancel", "--user", getpass.getuser()], env=slurm.environment, capture_output=True)
        end = time.monotonic() + STOP_S
        while time.monotonic() < end and any((slurm.folder / "spool").glob("*/job*")):
            time.sleep(0.1)
    for daemon in reversed(slurm.daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
