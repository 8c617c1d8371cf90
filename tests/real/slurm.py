"""A SLURM of one node in a folder: Debian's slurm-wlm and munge, as root, up in seconds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel")

CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=10
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# Accounting wants a data base. This answers what submitit asks of sacct out of the controller's memory.
SACCT = """\
#!/bin/sh
echo "JobID|State|NodeList"
scontrol --oneliner show job | tr ' ' '\\n' | awk -F= '
  $1 == "JobId" { id = $2 }
  $1 == "ArrayJobId" { array = $2 }
  $1 == "ArrayTaskId" { id = array "_" $2 }
  $1 == "JobState" { state = $2 }
  $1 == "NodeList" { print id "|" state "|" $2 }'
"""


def absent() -> str | None:
    """Return why there can be no SLURM here, or None."""
    if os.geteuid() != 0:
        return "the daemons of SLURM want root"
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge" if lacking else None


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start munged, slurmctld and slurmd, and yield the environment in which their commands are called."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    ports, cores = [free_port(), free_port()], os.cpu_count()
    conf.write_text(CONF.format(host=host, ports=ports, folder=folder, cores=cores))
    sacct = folder / "bin" / "sacct"
    sacct.write_text(SACCT)
    sacct.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    environment = {
        **os.environ,
        "SLURM_CONF": str(conf),
        "PATH": f"{sacct.parent}:{os.environ['PATH']}",
    }
    munged = ["munged", "--foreground", "--force", f"--key-file={key}",
              f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
              f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"]  # fmt: skip
    with ExitStack() as stack:
        for command in (munged, ["slurmctld", "-D", "-c", "-i"], ["slurmd", "-D", "-N", host]):
            stack.enter_context(daemon(command, folder, environment))
            time.sleep(1)
        wait_for(lambda: "idle" in ask(environment, "sinfo", "--noheader", "--format=%t"), 30)
        yield environment


@contextmanager
def daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a program in the foreground of its own log, and end it."""
    with (folder / f"{command[0]}.out").open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def ask(environment: dict[str, str], *command: str) -> str:
    """Return what a command of SLURM prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def wait_for(condition, seconds: float) -> None:
    """Return once a condition holds; after so many seconds that is an error."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{seconds} s")
        time.sleep(0.2)
