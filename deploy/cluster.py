"""The processes of one `several-nodes` folder: which there are, starting and ending them, asking
them how they are.

Everything that must be known later stands in the folder's state.json, readable by its owner alone:
the ports, the passwords, and of each process its id together with the moment it started. An id
alone could by now belong to somebody else's process; the two together cannot. What the processes
are for is the business of several_nodes.py, what happens when one dies that of failover.py.
"""

import contextlib
import csv
import glob
import http.client
import json
import os
import pwd
import re
import signal
import socket
import string
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NODES = ("node-1", "node-2", "node-3")


class Failure(Exception):
    """Something that the person at the terminal must know, in a sentence."""


class Cluster:
    """What runs under one folder."""

    def __init__(self, folder):
        self.folder = Path(folder).resolve()
        self.state_file = self.folder / "state.json"
        self.state = {}

    def load(self):
        """Reads what an earlier `up` wrote."""
        try:
            self.state = json.loads(self.state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise Failure(f"nothing was started in {self.folder}; run `up` first") from None
        return self

    def save(self):
        """Writes the state in one step, so that a crash leaves the old or the new one."""
        beside = self.state_file.with_suffix(".new")
        write_private(beside, json.dumps(self.state, indent=2) + "\n")
        os.replace(beside, self.state_file)

    @property
    def ports(self):
        return self.state["ports"]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.ports['public']}"

    @property
    def databases(self):
        return self.state["databases"]

    def port_of(self, name):
        return self.ports[name]

    # ---- Processes

    def start(self, name, command, owner=None, environment=None):
        """Starts a process that outlives this one, and notes it. Its output goes to log/."""
        account = {}
        home = self.folder
        if owner is not None and os.geteuid() == 0:
            entry = pwd.getpwnam(owner)
            account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            home = self.folder / name
        # Nothing of the terminal's environment: a KEYWARD_… or PG… there would change settings.
        clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
        with open(self.folder / "log" / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                env=clean | (environment or {}), start_new_session=True, **account,
            )
        self.state["processes"][name] = {
            "pid": process.pid, "started": started(process.pid), "boot": boot_id(),
        }
        self.save()

    def pid(self, name):
        """The process's id if it runs and is the one that was started here; else None."""
        noted = self.state["processes"].get(name)
        if noted is None or noted["boot"] != boot_id():
            return None
        same = noted["started"] is not None and started(noted["pid"]) == noted["started"]
        return noted["pid"] if same else None

    def end(self, names, seconds):
        """Ends these processes at once: politely, and after `seconds` with force."""
        signal_all(self.pid(name) for name in names)
        if not settles(lambda: not any(self.pid(name) for name in names), seconds):
            left = [name for name in names if self.pid(name)]
            print(f"several-nodes: {', '.join(left)} did not end by itself and is killed")
            signal_all((self.pid(name) for name in left), signal.SIGKILL)
            settles(lambda: not any(self.pid(name) for name in left), 10)
        for name in names:
            self.state["processes"].pop(name, None)
        self.save()

    def log_tail(self, name, lines=15):
        path = self.folder / "log" / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])

    def wait(self, what, condition, seconds, name):
        """Waits for a condition that the process `name` brings about."""
        def met_or_dead():
            return condition() or self.pid(name) is None

        if settles(met_or_dead, seconds) and self.pid(name) is not None:
            return
        raise Failure(f"{what}: not within {seconds} s\n{self.log_tail(name)}")

    # ---- PostgreSQL under Patroni

    def start_database(self, name):
        """Starts Patroni, which starts its PostgreSQL."""
        self.start(name, ["/usr/bin/patroni", str(self.folder / name / "patroni.yml")], "postgres")

    def postmaster(self, name):
        """The id of PostgreSQL's first process, which Patroni started; None if there is none.

        It is ours if it works in our data folder: an old file could name somebody else's process.
        """
        data = self.folder / name / "data"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((data / "postmaster.pid").read_text().splitlines()[0])
            if os.path.realpath(f"/proc/{pid}/cwd") == str(data) and started(pid) is not None:
                return pid
        return None

    def database_processes(self, name):
        """Every process of one database server: Patroni, PostgreSQL and its children."""
        parents = [pid for pid in (self.pid(name), self.postmaster(name)) if pid is not None]
        children = [pid for pid in all_pids() if parent(pid) in parents]
        return parents + [pid for pid in children if pid not in parents]

    def senders(self, name):
        """The processes with which one PostgreSQL feeds its standbys."""
        return [pid for pid in self.database_processes(name) if "walsender" in title(pid)]

    def patroni(self, name, path):
        """Status and document that Patroni's REST interface answers with."""
        status, body = ask(self.port_of(f"{name}-rest"), "GET", path, seconds=2)
        return status, body if isinstance(body, dict) else {}

    def has_role(self, name, role):
        """Whether this server is `primary`, or the `synchronous` standby of one."""
        return self.patroni(name, f"/{role}")[0] == 200

    def with_role(self, role):
        return next((name for name in self.databases if self.has_role(name, role)), None)

    # ---- HAProxy

    def balanced(self, proxy):
        """The servers that HAProxy gives traffic to, for one of its proxies."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(2)
            try:
                asked.connect(str(self.folder / "haproxy" / "haproxy.sock"))
                asked.sendall(b"show stat\n")
                text = b"".join(iter(lambda: asked.recv(65536), b"")).decode()
            except OSError:
                return []
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return [
            row["svname"] for row in rows
            if row["pxname"] == proxy and row["svname"] not in ("FRONTEND", "BACKEND")
            and row["status"].startswith("UP") and not row["status"].startswith("UP 0/")
        ]

    # ---- Keyward

    def token(self, scope=""):
        """A management token."""
        form = {
            "grant_type": "client_credentials", "client_id": self.state["client_id"],
            "client_secret": self.state["client_secret"], "audience": f"{self.url}/api",
            "scope": scope,
        }
        status, body = ask(self.ports["public"], "POST", "/oauth2/token", form=form)
        if status != 200:
            raise Failure(f"no token: {status} {body}")
        return body["access_token"]

    def is_ready(self, node):
        return ask(self.port_of(node), "GET", "/readyz", seconds=2)[0] == 200


def ask(port, method, path, body=None, form=None, token=None, seconds=10, connection=None):
    """Asks an HTTP server of this machine; (status, document), or (None, why) without an answer.

    A given connection stays open, as clients that know what they do keep theirs.
    """
    headers = {}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        text = "&".join(f"{name}={http_quote(value)}" for name, value in form.items())
    else:
        text = None if body is None else json.dumps(body)
        if text is not None:
            headers["Content-Type"] = "application/json"
    used = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        used.request(method, path, body=text, headers=headers)
        answer = used.getresponse()
        raw = answer.read()
    except (OSError, http.client.HTTPException) as error:
        used.close()
        return None, type(error).__name__
    finally:
        if connection is None:
            used.close()
    try:
        return answer.status, json.loads(raw)
    except ValueError:
        return answer.status, raw.decode(errors="replace")


def http_quote(text):
    return "".join(c if re.match(r"[A-Za-z0-9._~-]", c) else f"%{ord(c):02X}" for c in text)


def settles(condition, seconds, every=0.1):
    """Whether the condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(every)
    return True


def boot_id():
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def stat(pid):
    """The fields of /proc/PID/stat behind the name, or None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may hold anything, so it is cut at the last one.
    return text.rpartition(")")[2].split()


def started(pid):
    """When a process started, in clock ticks since the boot; None when it has ended.

    One that has ended and that nobody has asked about yet (a zombie) has ended.
    """
    fields = stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def parent(pid):
    fields = stat(pid)
    return None if fields is None else int(fields[1])


def title(pid):
    """What a process calls itself; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def signal_all(pids, number=signal.SIGTERM):
    for pid in pids:
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def free_ports(count):
    """Ports nobody listens at, below those that the kernel gives to outgoing connections: a server
    that died must find its port free when it comes back."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    lowest = 10_000 if first > 12_000 else 40_000
    highest = first if first > 12_000 else 65_000
    found = []
    at = lowest + int.from_bytes(os.urandom(4)) % (highest - lowest - 10 * count)
    while len(found) < count:
        if at >= highest:
            raise Failure("too few ports are free")
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", at))
            found.append(at)
        at += 1
    return found


def postgres_binaries():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[4]))
    if not found:
        raise Failure("no PostgreSQL server is installed")
    return found[-1]


def fill(template, **values):
    """The text of a file beside this one, with its words behind dollar signs filled in."""
    text = (HERE / template).read_text(encoding="utf-8")
    return string.Template(text).substitute(values)


def write_private(path, text, owner=None):
    """Writes a file that its owner alone can read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    give(path, owner)


def give(path, owner):
    """As root, gives a path to the account that needs it."""
    if owner is not None and os.geteuid() == 0:
        entry = pwd.getpwnam(owner)
        os.chown(path, entry.pw_uid, entry.pw_gid)
