"""Measures Keyward and compares each figure with its target; bench/README.md says how to read it.

A shared machine makes absolute speeds noise, so wherever there is something to compare with, both
sides run in turns within one run, and the figure is the median of the ratios of the turns. Speed
without correctness is worth nothing here: each part also checks that the answers were good ones,
and a check that fails is a problem of the run, whatever the speed was.

The targets live in the calls of `Bench.record`. What the generators do is in verify.lua (wrk) and
floor/src/bin/load.rs; what Keyward is compared with, in floor/src/bin/floor.rs and better-auth/.
This file leaves the installation of a Rust toolchain to the reader, and installs the rest itself.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.parse
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

# The server alone on one core, the generator alone on another. With the server's runtime made for
# one core, the floor gets one worker too.
SERVER_CORE = 0
GENERATOR_CORE = 1
FLOOR_WORKERS = 1

CONNECTIONS = (1, 8, 64)
KEYS_FEW = 1_000
# What switches exact counting off in the server, for the comparison and for nothing else.
COUNTING_OFF = {"KEYWARD_BENCH_COUNTING": "off"}
# What a product's API asks for; the token's size is a part of every request.
TOKEN_SCOPE = "verify:api_keys"
VERIFY_PATH = "/api/v1/api_keys/verify"
KEYS_PATH = "/api/v1/api_keys"
IS_VALID = '"is_valid":true'
WRITERS = 32
DURABLE_SAMPLE = 200

# Bounds: no part waits for longer than these.
READY_S_MAX = 120
STOP_S_MAX = 30
BUILD_S_MAX = 3600
IMPORT_S_MAX = 1800
FIRST_USE_S_MAX = 180
# And how many passes: each has some of the keys stored anew.
FIRST_USE_PASSES_MAX = 30
SETTLE_S_MAX = 120

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

# The crates that the server and its floor must share, version for version.
SHARED_CRATES = ("bytes", "http", "http-body", "http-body-util", "httparse", "hyper", "hyper-util",
                 "mio", "tokio")


class Problem(Exception):
    """Why a part cannot be measured, or why what it measured does not count."""


class Process:
    """A server of ours: started on a core, watched in /proc, ended by its own pid.

    Its standard output goes to the log, or with `speaks` to `first_line`.
    """

    def __init__(self, command, log, core=None, env=None, user=None, speaks=False,
                 stop_signal=signal.SIGTERM):
        self.log = log
        self.stop_signal = stop_signal
        identity = {}
        if user is not None:
            identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if speaks else out, stderr=out,
                env={**os.environ, **(env or {})}, preexec_fn=pin(core), **identity)
        self.pid = self.child.pid

    def first_line(self):
        line = self.child.stdout.readline().decode().strip()
        if not line:
            raise Problem(f"a server ended at once: {last_lines(self.log)}")
        return line

    def cpu_s(self):
        """Processor seconds that all its threads have used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def resident_bytes(self):
        """{"VmRSS": …, "RssAnon": …}: all that is resident, and the part no file backs."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        pairs = (line.split(":", 1) for line in lines if line.startswith(("VmRSS", "Rss")))
        return {name: int(value.split()[0]) * 1024 for name, value in pairs}

    def settle(self):
        """Waits until it uses under 5 % of a core for a second: background work is over."""
        deadline = time.monotonic() + SETTLE_S_MAX
        while time.monotonic() < deadline:
            before = self.cpu_s()
            time.sleep(1)
            if self.cpu_s() - before < 0.05:
                return
        raise Problem(f"a server still worked in the background after {SETTLE_S_MAX} s")

    def kill(self):
        self.child.kill()
        self.child.wait()

    def stop(self):
        """Asks it to end; returns its exit code."""
        if self.child.poll() is None:
            self.child.send_signal(self.stop_signal)
            try:
                self.child.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.child.stdout is not None:
            self.child.stdout.close()
        return self.child.returncode


def pin(core):
    """What a child runs before its program, so that all its threads stay on that core."""
    if core is None or core not in os.sched_getaffinity(0):
        return None
    return lambda: os.sched_setaffinity(0, {core})


def run(command, timeout_s, env=None, core=None, cwd=None):
    """Runs a command to its end and returns its standard output."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, timeout=timeout_s,
        env={**os.environ, **(env or {})}, preexec_fn=pin(core), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        shown = "\n".join(done.stderr.splitlines()[-15:])
        raise Problem(f"{Path(str(command[0])).name} exited with {done.returncode}:\n{shown}")
    return done.stdout


def last_lines(log):
    return "\n".join(Path(log).read_text(errors="replace").splitlines()[-15:])


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def say(text):
    print(text, file=sys.stderr, flush=True)


def install(program, package):
    """Makes sure of a program that comes in a Debian package."""
    if shutil.which(program):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Problem(f"{program} is missing; install Debian's package {package}")
    say(f"installing {package}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update"], BUILD_S_MAX, env=quiet)
    run(["apt-get", "install", "-y", "--no-install-recommends", package], BUILD_S_MAX, env=quiet)


def cargo_build(arguments, cwd):
    """Builds, and returns {binary name: path}, wherever the target folder is."""
    if not shutil.which("cargo"):
        raise Problem("cargo is missing; a Rust toolchain is needed")
    command = ["cargo", "build", "--release", "--message-format=json-render-diagnostics"]
    lines = run(command + arguments, BUILD_S_MAX, cwd=cwd).splitlines()
    messages = (json.loads(line) for line in lines if line.startswith("{"))
    return {message["target"]["name"]: message["executable"]
            for message in messages if message.get("executable")}


def check_locks_agree():
    def versions(lock):
        packages = tomllib.loads(lock.read_text())["package"]
        return {(package["name"], package["version"]) for package in packages
                if package["name"] in SHARED_CRATES}

    strangers = versions(HERE / "floor/Cargo.lock") - versions(ROOT / "Cargo.lock")
    if strangers:
        listed = ", ".join(f"{name} {version}" for name, version in sorted(strangers))
        raise Problem(f"the floor is built of other versions than the server: {listed}; "
                      "run `cargo update` in bench/floor, with --precise where needed")


def call(address, method, path, token=None, body=None, form=None):
    """One management call: its answer as an object, or a Problem that names the call."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(body)
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        content = urllib.parse.urlencode(form)
    with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request(method, path, content, headers)
        response = connection.getresponse()
        answer = response.read()
    if response.status not in (200, 201):
        raise Problem(f"{method} {path} answered {response.status}: {answer[:300]!r}")
    return json.loads(answer) if answer else {}


def is_ready(address):
    with contextlib.closing(http.client.HTTPConnection(address, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def verify_request(address, token, body):
    """The bytes of a verify call, the same that wrk sends."""
    return "\r\n".join([
        f"POST {VERIFY_PATH} HTTP/1.1", f"Host: {address}", f"Authorization: Bearer {token}",
        "Content-Type: application/json", f"Content-Length: {len(body)}", "", body]).encode()


def raw_answer(address, request):
    """(head lines, body) of one answer, byte for byte."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += receive(connection)
        head, body = received.split(b"\r\n\r\n", 1)
        lines = head.decode().split("\r\n")
        lengths = [line.split(":")[1] for line in lines if header_name(line) == "content-length"]
        if not lengths:
            raise Problem("an answer came without content-length")
        while len(body) < int(lengths[0]):
            body += receive(connection)
    return lines, body


def receive(connection):
    chunk = connection.recv(65536)
    if not chunk:
        raise Problem("a connection was closed in the middle of an answer")
    return chunk


def header_name(line):
    return line.split(":", 1)[0].lower()


def answer_bytes(lines, body):
    return len("\r\n".join(lines)) + len("\r\n\r\n") + len(body)


class Store:
    """An initialised Keyward: its folder, its address, and an API with one scope to issue for."""

    def __init__(self, bench, name, database=None):
        self.bench = bench
        self.name = name
        self.folder = bench.scratch / name
        self.where = ["--data", self.folder] + (["--database", database] if database else [])
        self.address = f"127.0.0.1:{free_port()}"
        self.base_url = f"http://{self.address}"
        printed = run([bench.keyward, "init", *self.where, "--public-url", self.base_url, "--json"],
                      READY_S_MAX)
        self.credentials = json.loads(printed)
        with self.serve() as server:
            created = self.call("POST", "/api/v1/apis",
                                body={"name": "Bench", "audience": "https://bench.example.org"})
            self.api_id = created["api"]["id"]
            created = self.call("POST", f"/api/v1/apis/{self.api_id}/scopes",
                                body={"key": "read:profile", "description": "Read the profile"})
            self.scope_id = created["scope"]["id"]
            self.expect_clean_end(server)

    def keys_not_stored_anew(self):
        """How many imported keys still have the hash that they were imported by."""
        path = f"file:{self.folder / 'keyward.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True, timeout=60)) as database:
            query = "select count(*) from key_secrets where pepper_id = 0"
            return database.execute(query).fetchone()[0]

    @contextlib.contextmanager
    def serve(self, core=None, env=None):
        """A server on this store, ready to answer."""
        server = self.start(core, env)
        try:
            self.wait_ready(server)
            yield server
        finally:
            server.stop()

    def start(self, core=None, env=None):
        command = [self.bench.keyward, "serve", *self.where, "--listen", self.address]
        return Process(command, self.bench.scratch / f"{self.name}.log", core,
                       {"KEYWARD_LOG": "warn", **(env or {})})

    def wait_ready(self, server):
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            if server.child.poll() is not None:
                raise Problem(f"keyward serve ended: {last_lines(server.log)}")
            if is_ready(self.address):
                return
            time.sleep(0.005)
        raise Problem(f"not ready after {READY_S_MAX} s: {last_lines(server.log)}")

    @staticmethod
    def expect_clean_end(server):
        code = server.stop()
        if code != 0:
            raise Problem(f"SIGTERM ended keyward with {code}, not 0: {last_lines(server.log)}")

    def token(self, scope=""):
        form = {"grant_type": "client_credentials", "audience": f"{self.base_url}/api",
                "client_id": self.credentials["client_id"],
                "client_secret": self.credentials["client_secret"], "scope": scope}
        return call(self.address, "POST", "/oauth2/token", form=form)["access_token"]

    def call(self, method, path, body=None):
        return call(self.address, method, path, self.token(), body)

    def issue_key(self):
        issued = self.call("POST", KEYS_PATH, body={
            "name": "bench", "type": "user", "user_id": "kp_bench", "api_id": self.api_id,
            "scope_ids": [self.scope_id]})
        return issued["api_key"]["id"], issued["api_key"]["key"]

    def issue_key_while_serving(self):
        with self.serve():
            return self.issue_key()

    def verification_count(self, key_id):
        return self.call("GET", f"{KEYS_PATH}/{key_id}")["api_key"]["verification_count"]


class ImportedStore(Store):
    """A store with many keys whose plain texts we know, because we made them.

    Key n is `<text_prefix><n in eight digits>` and has an owner of its own, which is the most that
    a key can cost. Keys enter by their hashes, as from somebody's older system.
    """

    def __init__(self, bench, name, keys):
        super().__init__(bench, name)
        self.keys = keys
        self.text_prefix = f"bench_{secrets.token_hex(12)}_"
        lines = bench.scratch / f"{name}.ndjson"
        with open(lines, "w", encoding="utf-8") as file:
            for number in range(keys):
                file.write(json.dumps(self.import_line(number)) + "\n")
        say(f"importing {keys:,} keys")
        started_at = time.monotonic()
        run([bench.keyward, "key", "import", *self.where, lines], IMPORT_S_MAX)
        self.import_s = time.monotonic() - started_at
        lines.unlink()

    def import_line(self, number):
        digest = hashlib.sha256(self.plain_text(f"{number:08d}").encode()).hexdigest()
        return {"name": f"key {number:08d}", "user_id": self.user_id(number),
                "api_id": self.api_id, "scope_ids": [self.scope_id],
                "hash": digest, "algorithm": "sha256", "encoding": "hex"}

    def plain_text(self, digits):
        return self.text_prefix + digits

    @staticmethod
    def user_id(number):
        return f"kp_{number:032x}"

    def request_file(self):
        """A verify call for `load`, which writes the key's number where the ######## are."""
        body = json.dumps({"api_key": self.plain_text("#" * 8)})
        path = self.bench.scratch / f"{self.name}.request"
        path.write_bytes(verify_request(self.address, self.token(TOKEN_SCOPE), body))
        return path


def postgres_programs():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"),
                   key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def scratch_postgres(bench):
    """A cluster of our own on loopback, with its shipped settings; gives its URL."""
    if postgres_programs() is None:
        install("initdb", "postgresql")
    programs = postgres_programs()
    if programs is None:
        raise Problem("PostgreSQL's initdb is missing; install Debian's package postgresql")
    # It refuses to run as root.
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    folder = bench.scratch / "postgres"
    folder.mkdir()
    password = secrets.token_urlsafe(24)
    password_file = folder / "password"
    password_file.write_text(password)
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        os.chown(password_file, user.pw_uid, user.pw_gid)
    identity = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid,
                                        "extra_groups": []}
    made = subprocess.run(
        [programs / "initdb", "-D", folder / "cluster", "-U", "keyward", "--encoding=UTF8",
         "--auth=scram-sha-256", f"--pwfile={password_file}"],
        timeout=READY_S_MAX, capture_output=True, text=True, check=False, cwd="/", **identity)
    if made.returncode != 0:
        raise Problem(f"initdb failed: {made.stderr}")
    port = free_port()
    database = Process(
        [programs / "postgres", "-D", folder / "cluster", "-p", port, "-k", folder,
         "-c", "listen_addresses=127.0.0.1"],
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for its clients.
        bench.scratch / "postgres.log", user=user, stop_signal=signal.SIGINT)
    try:
        deadline = time.monotonic() + READY_S_MAX
        ready = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, timeout=READY_S_MAX, check=False).returncode != 0:
            if database.child.poll() is not None or time.monotonic() > deadline:
                raise Problem(f"PostgreSQL did not start: {last_lines(database.log)}")
            time.sleep(0.05)
        yield f"postgres://keyward:{password}@127.0.0.1:{port}/postgres"
    finally:
        database.stop()


class Side:
    """One of two things compared: where it listens, what to send it, whose CPU to count."""

    def __init__(self, name, process, address, token, body):
        self.name = name
        self.process = process
        self.address = address
        self.token = token
        self.body = body

    def wrk(self, connections, seconds, check=False):
        env = {"BENCH_TOKEN": self.token, "BENCH_BODY": self.body,
               "BENCH_CHECK": "1" if check else "0"}
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", HERE / "verify.lua",
                   f"http://{self.address}{VERIFY_PATH}"]
        measured = with_cpu(self.process, lambda: json.loads(
            run(command, seconds + 60, env, GENERATOR_CORE).splitlines()[-1]))
        if measured["failed"] or measured["bad"]:
            raise Problem(f"{self.name}: {measured['failed']} failed and {measured['bad']} bad "
                          f"answers of {measured['answers']}: {measured['bad_shown']}")
        return measured


def load(bench, address, request_file, process, core=GENERATOR_CORE, **settings):
    """A run of floor/src/bin/load.rs; all its answers must be good."""
    words = [f"{name}={value}" for name, value in settings.items()]
    measured = with_cpu(process, lambda: json.loads(
        run([bench.tools["load"], address, request_file, *words], settings["seconds"] + 120,
            core=core)))
    if measured["bad"] or measured["failed_connections"]:
        raise Problem(f"{measured['bad']} bad answers of {measured['answers']}, "
                      f"{measured['failed_connections']} failed connections: "
                      f"{measured['bad_shown']}")
    return measured


def with_cpu(process, measure):
    """Adds to what was measured: answers a second, CPU µs an answer, how busy the server was."""
    before = process.cpu_s()
    measured = measure()
    used_s = process.cpu_s() - before
    measured["per_s"] = measured["answers"] / measured["seconds"]
    measured["cpu_us"] = used_s * 1e6 / max(measured["answers"], 1)
    measured["busy"] = used_s / measured["seconds"]
    measured["answer_bytes"] = measured["bytes"] / max(measured["answers"], 1)
    return measured


def in_turns(rounds, one, other, measure):
    """Rounds of (one, other), in changing order, so that a drift of the machine hits both."""
    pairs = []
    for number in range(rounds):
        if number % 2 == 0:
            first = measure(one)
            pairs.append((first, measure(other)))
        else:
            second = measure(other)
            pairs.append((measure(one), second))
    return pairs


def ratio(pairs, what):
    """Median of one/other over the rounds, with the least and the greatest."""
    ratios = [one[what] / other[what] for one, other in pairs if other[what]]
    if not ratios:
        raise Problem(f"nothing to divide by in {what}")
    return statistics.median(ratios), f"{min(ratios):.3f}–{max(ratios):.3f}"


def medians(pairs, what):
    """The medians of the one and of the other, for the reader; the ratio is not made of them."""
    return tuple(statistics.median(side[what] for side in sides) for sides in zip(*pairs))


def kernel(bench):
    """The verdict alone, with its table of many keys, by core's own bench program."""
    printed = run(["cargo", "bench", "-p", "keyward-core", "--bench", "verdict", "--", bench.keys],
                  BUILD_S_MAX, cwd=ROOT)
    say(printed.rstrip())
    found = dict(re.findall(r"^(verdict, [a-z ]+?) +(\d+) ns median", printed, re.MULTILINE))
    weight = re.search(r"^resident beyond strings +([\d.]+) bytes", printed, re.MULTILINE)
    if "verdict, valid" not in found or weight is None:
        raise Problem("the kernel's bench did not print what is looked for")
    for label, median_ns in found.items():
        bench.record(f"{label}, {bench.keys:,} keys", int(median_ns) / 1000, "µs",
                     at_most=1.0 if label == "verdict, valid" else None)
    bench.record("the table's memory a key beyond its strings", float(weight[1]), "bytes",
                 at_most=200)


def http_floor(bench):
    """Verify over HTTP against a server that reads the body and answers a constant."""
    store = Store(bench, "http")
    key_id, text = store.issue_key_while_serving()
    body = json.dumps({"api_key": text})
    with store.serve(SERVER_CORE) as server:
        keyward = Side("keyward", server, store.address, store.token(TOKEN_SCOPE), body)
        for connections in CONNECTIONS:
            floor_at_level(bench, store, key_id, keyward, connections)
        store.expect_clean_end(server)


def floor_at_level(bench, store, key_id, keyward, connections):
    answers = Answers(store, key_id, connections)
    # The count in the answer has its digits, so the constant is taken once it is warm.
    answers.add(keyward.wrk(connections, bench.seconds, check=True))
    with floor_like(bench, keyward) as floor:
        answers.in_flight_max += 1
        floor.wrk(connections, 1, check=True)

        def measure(side):
            measured = side.wrk(connections, bench.seconds)
            if side is keyward:
                answers.add(measured)
            return measured

        pairs = in_turns(bench.rounds, keyward, floor, measure)
    answers.check()
    label = f"{connections} connection" + ("s" if connections > 1 else "")
    ours, floors = medians(pairs, "per_s")
    busy, floor_busy = medians(pairs, "busy")
    bench.record_ratio(
        f"throughput of the floor's, {label}", pairs, "per_s", at_least=0.85,
        more=f"{ours:,.0f}/s of {floors:,.0f}/s; busy {busy:.0%}, {floor_busy:.0%}")
    ours, floors = medians(pairs, "cpu_us")
    bench.record_ratio(f"CPU an answer over the floor's, {label}", pairs, "cpu_us", at_most=1.25,
                       more=f"{ours:.2f} µs, {floors:.2f} µs")
    ours, floors = medians(pairs, "p99_us")
    bench.record_ratio(f"p99 over the floor's, {label}", pairs, "p99_us", at_most=1.3,
                       more=f"{ours:.0f} µs, {floors:.0f} µs")
    ours, floors = medians(pairs, "answer_bytes")
    bench.record(f"bytes an answer, {label}", ours, "bytes", more=f"the floor's: {floors:.2f}")
    # The count in the answer may gain a digit on the way, or two.
    if abs(ours - floors) > 2:
        raise Problem(f"answers of {ours:.1f} bytes were compared with {floors:.1f}")


class Answers:
    """What the generator got, to be held against what the key counted."""

    def __init__(self, store, key_id, connections):
        self.store, self.key_id, self.connections = store, key_id, connections
        self.before = store.verification_count(key_id)
        self.received = 0
        # At the end of a run, each connection may have one answer that wrk did not wait for.
        self.in_flight_max = 0

    def add(self, measured):
        self.received += measured["answers"]
        self.in_flight_max += self.connections

    def check(self):
        grown = self.store.verification_count(self.key_id) - self.before
        if not self.received <= grown <= self.received + self.in_flight_max:
            raise Problem(f"verification_count grew by {grown:,}, while {self.received:,} valid "
                          f"answers arrived and at most {self.in_flight_max} were under way")
        say(f"  verification_count grew by {grown:,}: {self.received:,} answers received, "
            f"at most {self.in_flight_max} under way")


@contextlib.contextmanager
def floor_like(bench, keyward):
    """A floor whose answer has the size, and the headers, of the answer that keyward gives now."""
    request = verify_request(keyward.address, keyward.token, keyward.body)
    lines, body = raw_answer(keyward.address, request)
    if IS_VALID.encode() not in body:
        raise Problem(f"keyward did not answer valid: {body!r}")
    body_file = bench.scratch / "floor.body"
    body_file.write_bytes(body)
    headers = [line for line in lines[1:] if header_name(line) not in ("date", "content-length")]
    date = "date" if any(header_name(line) == "date" for line in lines) else "no-date"
    process = Process([bench.tools["floor"], FLOOR_WORKERS, body_file, date, *headers],
                      bench.scratch / "floor.log", SERVER_CORE, speaks=True)
    try:
        floor = Side("floor", process, process.first_line(), keyward.token, keyward.body)
        constant = raw_answer(floor.address, request)
        if answer_bytes(*constant) != answer_bytes(lines, body):
            raise Problem(f"the floor answers {answer_bytes(*constant)} bytes, keyward "
                          f"{answer_bytes(lines, body)}: {constant[0]} {lines}")
        yield floor
    finally:
        process.stop()


def keys(bench):
    """Whether verification stays as fast with many keys as with few."""
    few, many = bench.imported(KEYS_FEW), bench.imported(bench.keys)
    with few.serve(SERVER_CORE) as few_server, many.serve(SERVER_CORE) as many_server:
        sides = {}
        for store, server in ((few, few_server), (many, many_server)):
            request_file = store.request_file()

            def measure(order, seconds, store=store, server=server, request_file=request_file):
                return load(bench, store.address, request_file, server, connections=64,
                            seconds=seconds, numbers=store.keys, order=order, first=0, status=200,
                            contains=IS_VALID)

            sides[store] = measure
            first_use = measure("sequential", FIRST_USE_S_MAX)
            # The first use of an imported key has it stored anew under our own digest, in the
            # background and not more than the disk takes: the others ask for it when used again.
            # What is compared is keys, and not the rest of an import.
            passes = 1
            while (left := store.keys_not_stored_anew()) and passes < FIRST_USE_PASSES_MAX:
                say(f"pass {passes}: {left:,} keys are still to be stored anew")
                measure("sequential", FIRST_USE_S_MAX)
                passes += 1
            if left:
                raise Problem(f"{left:,} imported keys were not stored anew in {passes} passes")
            bench.record(
                f"first use of {store.keys:,} imported keys", first_use["per_s"], "/s",
                more=f"{first_use['answers']:,} used, {first_use['cpu_us']:.1f} µs CPU each")
            server.settle()
        pairs = in_turns(bench.rounds, many, few, lambda side: sides[side]("random", bench.seconds))
        of_many, of_few = medians(pairs, "per_s")
        bench.record_ratio(f"throughput, {many.keys:,} keys of {few.keys:,} keys'", pairs, "per_s",
                           at_least=0.9, more=f"{of_many:,.0f}/s of {of_few:,.0f}/s")
        bench.record_ratio(f"CPU an answer, {many.keys:,} keys over {few.keys:,} keys'", pairs,
                           "cpu_us")


def memory(bench):
    """What one more key costs: the difference of two servers that did nothing but start."""
    few, many = bench.imported(KEYS_FEW), bench.imported(bench.keys)
    resident = {}
    for store in (few, many):
        with store.serve() as server:
            server.settle()
            resident[store] = server.resident_bytes()
    more_keys = many.keys - few.keys
    each = {name: (resident[many][name] - resident[few][name]) / more_keys
            for name in ("VmRSS", "RssAnon")}
    line = few.import_line(0)
    string_bytes = len(line["user_id"]) + len(line["name"])
    # 10 M keys, with at most 100 bytes of strings each, in 3 GiB: 322 bytes.
    bench.record("memory a key, all that is resident", each["VmRSS"], "bytes",
                 at_most=3 * 2**30 // 10_000_000,
                 more=f"{each['RssAnon']:.0f} of it without a file behind it; 10 M keys make "
                      f"{each['VmRSS'] * 1e7 / 2**30:.2f} GiB")
    bench.record("memory a key beyond its owner's id and its name", each["VmRSS"] - string_bytes,
                 "bytes", at_most=200)


def start(bench):
    """From the process's start to its first good answer, with many keys."""
    store = bench.imported(bench.keys)
    with store.serve():
        token = store.token(TOKEN_SCOPE)
    body = json.dumps({"api_key": store.plain_text(f"{store.keys - 1:08d}")})
    request = verify_request(store.address, token, body)
    ready_s, verified_s = [], []
    for _ in range(bench.rounds):
        started_at = time.monotonic()
        server = store.start()
        try:
            store.wait_ready(server)
            ready_s.append(time.monotonic() - started_at)
            answer = raw_answer(store.address, request)[1]
            verified_s.append(time.monotonic() - started_at)
            if IS_VALID.encode() not in answer:
                raise Problem(f"the first verification after a start was not valid: {answer!r}")
            store.expect_clean_end(server)
        finally:
            server.stop()
    bench.record(f"start to first verify, {store.keys:,} keys", statistics.median(verified_s), "s",
                 at_most=3.0, more=f"ready after {statistics.median(ready_s):.2f} s")


def writes(bench):
    """Keys created by 32 clients, each answered only once it is durable; then the power cord."""
    bench.refuse_memory_file_system()
    with scratch_postgres(bench) as url:
        stores = {"SQLite": Store(bench, "writes-sqlite"),
                  "PostgreSQL": Store(bench, "writes-postgres", url)}
        created = {engine: [] for engine in stores}
        servers = {engine: store.start() for engine, store in stores.items()}
        try:
            for engine, store in stores.items():
                store.wait_ready(servers[engine])
            # One round more than is measured: in the first, the 1,000 owners are registered.
            for number in range(bench.rounds + 1):
                for engine, store in stores.items():
                    measured = create_keys(bench, store, servers[engine], number)
                    if number > 0:
                        created[engine].append(measured)
                    say(f"  {engine}: {measured['per_s']:,.0f} creates/s")
            flushes_per_s = bench.flushes_per_s()
            for engine, store in stores.items():
                per_s = statistics.median(measured["per_s"] for measured in created[engine])
                p99_ms = statistics.median(m["p99_us"] for m in created[engine]) / 1000
                bench.record(
                    f"keys created, {WRITERS} clients, {engine}", per_s, "/s", at_least=1500,
                    more=f"p99 {p99_ms:.1f} ms; {per_s / flushes_per_s:.2f} a flush of this disk, "
                         f"which does {flushes_per_s:,.0f}/s")
                servers[engine].kill()
                check_created_survived(bench, store)
        finally:
            for server in servers.values():
                server.stop()


def create_keys(bench, store, server, round_number):
    body = json.dumps({"name": "bench ########", "type": "user", "user_id": "kp_bench_@@@",
                       "api_id": store.api_id, "scope_ids": [store.scope_id]})
    request = "\r\n".join([
        f"POST {KEYS_PATH} HTTP/1.1", f"Host: {store.address}",
        f"Authorization: Bearer {store.token()}", "Content-Type: application/json",
        f"Content-Length: {len(body)}", "", body])
    request_file = bench.scratch / f"{store.name}.request"
    request_file.write_text(request)
    return load(bench, store.address, request_file, server, core=None, connections=WRITERS,
                seconds=bench.seconds, numbers=100_000_000, order="sequential",
                first=round_number * 1_000_000, status=201, contains="API_KEY_CREATED",
                ids=bench.scratch / f"{store.name}.ids")


def check_created_survived(bench, store):
    """The server was killed: what it acknowledged last, and a sample, must be there."""
    ids = (bench.scratch / f"{store.name}.ids").read_text().split()
    step = max(len(ids) // DURABLE_SAMPLE, 1)
    with store.serve():
        token = store.token()
        for key_id in {*ids[::step], *ids[-WRITERS:]}:
            call(store.address, "GET", f"{KEYS_PATH}/{key_id}", token)


def counting(bench):
    """What exact counting costs."""
    stores = {"exact": Store(bench, "counting-exact"), "off": Store(bench, "counting-off")}
    issued = {name: store.issue_key_while_serving() for name, store in stores.items()}
    with (stores["exact"].serve(SERVER_CORE) as exact_server,
          stores["off"].serve(SERVER_CORE, COUNTING_OFF) as off_server):
        servers = {"exact": exact_server, "off": off_server}
        sides = {name: Side(name, servers[name], store.address, store.token(TOKEN_SCOPE),
                            json.dumps({"api_key": issued[name][1]}))
                 for name, store in stores.items()}
        for side in sides.values():
            side.wrk(64, bench.seconds, check=True)
        if stores["off"].verification_count(issued["off"][0]) != 0:
            raise Problem(f"{COUNTING_OFF} did not switch counting off; nothing was compared")
        pairs = in_turns(bench.rounds, sides["exact"], sides["off"],
                         lambda side: side.wrk(64, bench.seconds))
    bench.record_ratio("throughput, exact counting of counting off", pairs, "per_s", at_least=0.97)
    bench.record_ratio("CPU an answer, exact counting over counting off", pairs, "cpu_us")


def idle(bench):
    """What a server with next to nothing in it occupies."""
    store = Store(bench, "idle")
    key = store.issue_key_while_serving()
    with store.serve() as server:
        server.settle()
        bench.record("resident, idle", server.resident_bytes()["VmRSS"] / 2**20, "MiB", at_most=60)
        body = json.dumps({"api_key": key[1]})
        side = Side("keyward", server, store.address, store.token(TOKEN_SCOPE), body)
        side.wrk(64, bench.seconds)
        server.settle()
        bench.record("resident, idle after a load", server.resident_bytes()["VmRSS"] / 2**20, "MiB")


def better_auth(bench):
    """The same question asked of Better Auth's API-key plugin on SQLite."""
    install("npm", "npm")
    folder = bench.scratch / "better-auth"
    shutil.copytree(HERE / "better-auth", folder, ignore=shutil.ignore_patterns("node_modules"))
    say("installing Better Auth; its SQLite driver may be compiled, which takes a minute or two")
    # The headers that Node.js brought along, where it did: the compiler then needs no download.
    nodedir = Path(shutil.which("node")).resolve().parent.parent
    env = {"npm_config_nodedir": str(nodedir)} if (nodedir / "include/node").is_dir() else {}
    run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"], BUILD_S_MAX, env,
        cwd=folder)
    port = free_port()
    store = Store(bench, "better-auth-keyward")
    _, text = store.issue_key_while_serving()
    node = Process(["node", folder / "server.mjs", folder / "keys.sqlite", port],
                   bench.scratch / "better-auth.log", SERVER_CORE, {"NODE_ENV": "production"},
                   speaks=True)
    try:
        better_key = json.loads(node.first_line())["key"]
        with store.serve(SERVER_CORE) as server:
            token = store.token(TOKEN_SCOPE)
            ours = Side("keyward", server, store.address, token, json.dumps({"api_key": text}))
            theirs = Side("Better Auth", node, f"127.0.0.1:{port}", token,
                          json.dumps({"api_key": better_key}))
            for side in (ours, theirs):
                side.wrk(64, bench.seconds, check=True)
            pairs = in_turns(bench.rounds, ours, theirs, lambda side: side.wrk(64, bench.seconds))
    finally:
        node.stop()
    ours, theirs = medians(pairs, "per_s")
    bench.record_ratio("throughput over Better Auth's", pairs, "per_s", at_least=50,
                       more=f"{ours:,.0f}/s, {theirs:,.0f}/s")
    bench.record_ratio("CPU an answer of Better Auth's", pairs, "cpu_us")


PARTS = {
    "kernel": kernel,
    "http": http_floor,
    "keys": keys,
    "memory": memory,
    "start": start,
    "writes": writes,
    "counting": counting,
    "idle": idle,
    "better-auth": better_auth,
}


class Bench:
    """One run: its settings, its scratch folder, its built programs, and what it found."""

    def __init__(self, arguments, scratch):
        self.rounds = arguments.rounds
        self.seconds = arguments.seconds
        self.keys = arguments.keys
        self.scratch = scratch
        self.keyward = arguments.keyward
        self.tools = {}
        self.stores = {}
        self.figures = []
        self.problems = []
        self.part = None

    def prepare(self):
        install("wrk", "wrk")
        say("building the floor and the generator")
        self.tools = cargo_build([], HERE / "floor")
        if self.keyward is None:
            check_locks_agree()
            say("building keyward")
            self.keyward = cargo_build(["-p", "keyward", "--bin", "keyward"], ROOT)["keyward"]

    def imported(self, keys_count):
        """A store with that many keys, made once for all the parts that need it."""
        if keys_count not in self.stores:
            # A failed import is not tried again by the next part.
            self.stores[keys_count] = None
            store = ImportedStore(self, f"keys-{keys_count}", keys_count)
            self.stores[keys_count] = store
            if keys_count > KEYS_FEW:
                self.record(f"import of {keys_count:,} keys", keys_count / store.import_s, "/s")
        if self.stores[keys_count] is None:
            raise Problem(f"there is no store of {keys_count:,} keys; an earlier part failed at it")
        return self.stores[keys_count]

    def record(self, name, value, unit, at_least=None, at_most=None, more=""):
        met = None
        if at_least is not None:
            met = value >= at_least
        if at_most is not None:
            met = value <= at_most
        figure = {"part": self.part, "name": name, "value": value, "unit": unit,
                  "at_least": at_least, "at_most": at_most, "met": met, "more": more}
        self.figures.append(figure)
        say("  " + shown(figure))

    def record_ratio(self, name, pairs, what, at_least=None, at_most=None, more=""):
        value, spread = ratio(pairs, what)
        more = f"{spread}; {more}" if more else spread
        self.record(name, value, "×", at_least, at_most, more)

    def refuse_memory_file_system(self):
        kind = run(["stat", "-f", "-c", "%T", self.scratch], 10).strip()
        if kind in ("tmpfs", "ramfs"):
            raise Problem(f"the scratch folder is on {kind}, where nothing is durable; "
                          "name one on a disk with --scratch")

    def flushes_per_s(self):
        """What the disk itself does: 4 KiB appended and flushed, one after the other."""
        path = self.scratch / "flushes"
        count, block = 0, os.urandom(4096)
        with open(path, "wb", buffering=0) as file:
            started_at = time.monotonic()
            while time.monotonic() - started_at < 1:
                file.write(block)
                os.fdatasync(file.fileno())
                count += 1
        path.unlink()
        return count

    def measure(self, part):
        self.part = part
        say(f"{part}: {PARTS[part].__doc__}")
        started_at = time.monotonic()
        try:
            PARTS[part](self)
        except (Problem, OSError, KeyError, ValueError, subprocess.TimeoutExpired,
                http.client.HTTPException) as problem:
            self.problems.append({"part": part, "problem": f"{type(problem).__name__}: {problem}"})
            say(f"  PROBLEM: {problem}")
        say(f"  {time.monotonic() - started_at:.0f} s")


def shown(figure):
    target = ""
    if figure["at_least"] is not None:
        target = f"≥ {figure['at_least']:g}"
    if figure["at_most"] is not None:
        target = f"≤ {figure['at_most']:g}"
    verdict = {True: "met", False: "SHORT", None: ""}[figure["met"]]
    value = figure["value"]
    decimals = 3 if value < 10 else 1 if value < 1000 else 0
    more = f"  ({figure['more']})" if figure["more"] else ""
    return (f"{figure['name']:<58} {value:>9,.{decimals}f} {figure['unit']:<5}"
            f" {target:<8} {verdict:<5}{more}").rstrip()


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": models[0] if models else "unknown", "cores": os.cpu_count(),
            "kernel": os.uname().release, "load_before": os.getloadavg()[0]}


def parse_arguments():
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help=f"what to measure, of {', '.join(PARTS)}; all but the last by default")
    parser.add_argument("--with-better-auth", action="store_true",
                        help="measure better-auth too; it is installed from npm")
    parser.add_argument("--json", metavar="FILE", help="write every figure there as well")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each comparison (5)")
    parser.add_argument("--seconds", type=int, default=3, help="length of one turn (3)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="how many are many (1,000,000)")
    parser.add_argument("--keyward", metavar="FILE",
                        help="measure this program instead of building one")
    parser.add_argument("--scratch", metavar="DIR",
                        help="where to make the scratch folder, which is removed at the end")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    if arguments.keyward is not None:
        arguments.keyward = Path(arguments.keyward).resolve()
    parts = arguments.parts or [part for part in PARTS if part != "better-auth"]
    if arguments.with_better_auth and "better-auth" not in parts:
        parts.append("better-auth")
    return arguments, parts


def main():
    arguments, parts = parse_arguments()
    # A signal unwinds like an error, so that what was started is ended and what was made, removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    before = machine()
    if not {SERVER_CORE, GENERATOR_CORE} <= os.sched_getaffinity(0):
        say("fewer than two cores: server and generator disturb each other, and ratios mean little")
    with tempfile.TemporaryDirectory(prefix="keyward-bench-", dir=arguments.scratch) as scratch:
        # PostgreSQL runs as another user and must reach its own folder in here.
        os.chmod(scratch, 0o711)
        os.umask(0o077)
        bench = Bench(arguments, Path(scratch))
        try:
            bench.prepare()
        except Problem as problem:
            say(f"cannot measure: {problem}")
            return 1
        for part in parts:
            bench.measure(part)
    print(f"{before['processor']}, {before['cores']} cores, load {before['load_before']:.2f} "
          f"before; {arguments.rounds} turns of {arguments.seconds} s")
    for figure in bench.figures:
        print(f"{figure['part']:<12}{shown(figure)}")
    for problem in bench.problems:
        print(f"{problem['part']:<12}PROBLEM {problem['problem']}")
    if arguments.json:
        report = {"machine": before, "rounds": arguments.rounds, "seconds": arguments.seconds,
                  "keys": arguments.keys, "figures": bench.figures, "problems": bench.problems}
        Path(arguments.json).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    # A target that is missed is a finding; a check that failed makes the run worthless.
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
