"""A throw-away Slurm cluster of virtual nodes on this machine, and the faults that can be injected.

Every node is a set of namespaces (network, processes, host name, mounts) with its own slurmd, on a bridge per cluster;
the file system is shared. Power cuts, network partitions and full disks are real. Needs root and Debian's
packages slurmctld, slurmd, slurm-client, munge and iproute2; outside of its folder, it only adds a bridge.
Uses a free bridge, network and port, so clusters can run side by side, even if a killed one left something behind.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

_MOST_CLUSTERS = 100
_NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "unshare", "ip")
_CONF = """\
ClusterName=test
SlurmctldHost={controller}({network}.254)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also the delay before a requeued job may restart; the default is 120 s
AuthInfo=socket={folder}/munge/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/pid/slurmctld.pid
SlurmdPidFile={folder}/pid/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.log
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=6
TCPTimeout=2
MessageTimeout=5
BatchStartTimeout=10
KillWait=15
InactiveLimit=0
RequeueExit=85
MinJobAge=3600
GresTypes=gpu
"""
# PID 1 of a node: a shell that reaps orphans. Killing it is a power cut.
_NODE = """
hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount -t tmpfs tmpfs /dev/shm
while [ ! -e "$2/pid/$1.ready" ]; do sleep 0.05; done
ip link set lo up; ip addr add "$3/24" dev eth0; ip link set eth0 up
trap 'kill -TERM $d; wait $d; exit 0' TERM
slurmd -D -N "$1" & d=$!
while :; do wait || true; sleep 3600 & wait $! || true; done
"""


def why_not() -> str:
    """What this machine lacks for a cluster; empty = nothing."""
    if os.geteuid() != 0:
        return "a cluster of virtual nodes needs root (namespaces, a network bridge)"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install slurmctld slurmd slurm-client munge iproute2)"
    try:
        _shell("unshare --net --pid --uts --ipc --mount --fork --mount-proc ip link add minordpotry type bridge")
    except RuntimeError as error:
        return f"root may not create namespaces and network bridges here: {error}"
    return ""


@dataclass
class Cluster:
    """Started with :meth:`start`; jobs and commands go through :meth:`run`."""

    folder: Path
    num_nodes: int
    cpus: int = 2
    _number: int = -1  # number of this cluster on the machine
    _processes: list[subprocess.Popen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        # No coverage in jobs: it would slow every start of NeMo by half, and the code they run is
        # measured in other tests.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
        return {**inherited, "SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def _bridge(self) -> str:
        return f"minordpo{self._number}"

    @property
    def _network(self) -> str:
        return f"10.214.{self._number}"

    def _link(self, node: str) -> str:
        return f"mdpo{self._number}{node}"

    def start(self) -> None:
        self._number = _take_bridge()
        for name in ("munge", "state", "spool", "log", "pid"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o711)
        controller = os.uname().nodename
        hosts = f"127.0.0.1 localhost\n{self._network}.254 {controller}\n"
        conf = _CONF.format(controller=controller, port=16900 + self._number, network=self._network, folder=self.folder)
        for number in range(1, self.num_nodes + 1):
            address = f"{self._network}.{number}"
            # the second line is for reverse lookups of IPv4-mapped addresses
            hosts += f"{address} node{number}\n::ffff:{address} node{number}\n"
            conf += (
                f"NodeName=node{number} NodeHostname=node{number} NodeAddr={address} Port=16818 CPUs={self.cpus} "
                f"RealMemory=8000 Gres=gpu:2 State=UNKNOWN\n"
            )
        conf += "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        (self.folder / "hosts").write_text(hosts)
        (self.folder / "slurm.conf").write_text(conf)
        # Slurm only checks that the GPUs' device files exist
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        key = self.folder / "munge/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        _shell(f"ip addr add {self._network}.254/24 dev {self._bridge}")
        _shell(f"ip link set {self._bridge} up")
        munge = self.folder / "munge"
        self._spawn(
            # forced: munged would refuse a test folder that is closed to other users
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/munge.sock",
            f"--pid-file={self.folder}/pid/munged.pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        )  # fmt: skip
        _wait(lambda: (munge / "munge.sock").exists(), 10, "munged")
        self._spawn(
            "unshare", "--mount", "--kill-child", "--fork", "bash", "-c",
            'mount --bind "$0" /etc/hosts; exec slurmctld -D -i', self.folder / "hosts",
        )  # fmt: skip
        for number in range(1, self.num_nodes + 1):
            self.power_on(f"node{number}")
        _wait(lambda: len(self._idle()) == self.num_nodes, 30, "idle nodes")
        self.run("srun", "-N", str(self.num_nodes), "true")

    def stop(self) -> None:
        """End everything that was started; may be called twice."""
        for number in range(1, self.num_nodes + 1):
            with contextlib.suppress(TimeoutError):  # the kernel may be slow to end namespaces
                self.power_cut(f"node{number}")
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)

    def run(self, *command: str, cwd: Path | None = None, check: bool = True, **environment: str) -> str:
        """Run a Slurm client command, for example sbatch; returns its output."""
        done = subprocess.run(
            list(command),
            env={**self.environment, "MINORDPO_PYTHON": sys.executable, **environment},
            capture_output=True,
            text=True,
            cwd=cwd,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, ..."""
        return _field(self.run("scontrol", "show", "job", job), "JobState")

    def nodes(self, job: str) -> list[str]:
        """The nodes of a running job; the batch script's comes first."""
        names = _field(self.run("scontrol", "show", "job", job), "NodeList")
        return self.run("scontrol", "show", "hostnames", names).split()

    def ranks(self, job: str) -> dict[int, int]:
        """{rank: process id on this machine} of a job's training."""
        found: dict[int, tuple[int, int]] = {}  # process: (rank, parent)
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                lines = (process / "environ").read_bytes().split(b"\0")
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # has ended
            variables = dict(line.split(b"=", 1) for line in lines if b"=" in line)
            is_rank = b"nemo_minordpo.train" in command and b"python" in command[0] and b"SLURM_PROCID" in variables
            if is_rank and variables.get(b"SLURM_JOB_ID", b"").decode() == job:
                found[int(process.name)] = int(variables[b"SLURM_PROCID"]), parent
        # without the child processes that write checkpoints
        return {rank: process for process, (rank, parent) in found.items() if parent not in found}

    def power_on(self, node: str) -> None:
        """Start a node, or restart it after a power cut."""
        address = f"{self._network}.{int(node.removeprefix('node'))}"
        pid, ready = self.folder / f"pid/{node}.pid", self.folder / f"pid/{node}.ready"
        (self.folder / "spool" / node).mkdir(exist_ok=True)
        ready.unlink(missing_ok=True)
        outer = self._spawn(
            "unshare", "--net", "--pid", "--uts", "--ipc", "--mount", "--fork", "--kill-child", "--mount-proc",
            "bash", "-c", _NODE, "_", node, self.folder, address,
        )  # fmt: skip
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        _wait(lambda: bool(children.read_text().split()), 5, f"{node}'s first process")
        inner = children.read_text().split()[0]
        pid.write_text(inner)
        # after a power cut, the kernel may still hold the node's interface name
        _wait(
            lambda: _works(f"ip link add {self._link(node)} type veth peer name eth0 netns {inner}"), 10, "its network"
        )
        _shell(f"ip link set {self._link(node)} master {self._bridge} up")
        ready.touch()

    def power_cut(self, node: str) -> None:
        pid = self.folder / f"pid/{node}.pid"
        if pid.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid.read_text()), signal.SIGKILL)
            pid.unlink()
            _wait(lambda: not Path(f"/sys/class/net/{self._link(node)}").exists(), 10, f"{node}'s network to go")

    def cut_off(self, node: str) -> None:
        """A network partition: the node keeps computing, but cannot be reached."""
        _shell(f"ip link set {self._link(node)} down")

    def connect(self, node: str) -> None:
        _shell(f"ip link set {self._link(node)} up")

    def _idle(self) -> set[str]:
        return set(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split())

    def _spawn(self, *command: object) -> subprocess.Popen:
        log = (self.folder / "log" / f"{command[0]}.out").open("a")
        process = subprocess.Popen(
            list(map(str, command)), env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        self._processes.append(process)
        return process


def _take_bridge() -> int:
    """Create the first bridge whose number is free, and return the number."""
    for number in range(_MOST_CLUSTERS):
        with contextlib.suppress(RuntimeError):
            _shell(f"ip link add minordpo{number} type bridge")
            return number
    raise RuntimeError(
        f"{_MOST_CLUSTERS} bridges of test clusters exist already: delete them with ip link del minordpo0, ..."
    )


def _field(text: str, name: str) -> str:
    for word in text.split():
        key, _, value = word.partition("=")
        if key == name:
            return value
    return ""


def _shell(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr}")


def _works(command: str) -> bool:
    try:
        _shell(command)
    except RuntimeError:
        return False
    return True


def _wait(condition, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.05)
