"""Starts, shows and ends three Keyward nodes on a replicated PostgreSQL behind a load balancer.

deploy/several-nodes is the way to call it; deploy/README.md describes what it starts.
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import failover
from cluster import (
    NODES, Cluster, Failure, ask, fill, free_ports, give, postgres_binaries, settles, signal_all,
    write_private,
)

# What HAProxy answers with when it finds no node.
NO_NODE = json.dumps({"errors": [
    {"code": "NO_NODE_IS_READY", "message": "no node can answer now; try again"},
]})
ROOT = Path(__file__).resolve().parent.parent
# Its socket in the data folder makes the longest path of all, and Linux allows 107 bytes.
FOLDER_BYTES_MAX = 80


def say(text):
    print(text, flush=True)


def up(arguments):
    keyward = binary(arguments.keyward)
    folder = Path(arguments.dir).resolve()
    cluster = Cluster(folder)
    make_folder(folder)
    names = [f"db-{number + 1}" for number in range(arguments.databases)]
    wanted = ["public", "database", "etcd", "etcd-peer", *NODES]
    wanted += [f"{node}-metrics" for node in NODES]
    wanted += names + [f"{name}-rest" for name in names]
    cluster.state = {
        "ports": dict(zip(wanted, free_ports(len(wanted)))),
        "databases": names,
        "lease": arguments.lease,
        "is_synchronous": not arguments.asynchronous,
        "processes": {},
        "passwords": {
            name: secrets.token_hex(16) for name in ("superuser", "replication", "rest", "keyward")
        },
    }
    cluster.save()
    try:
        start_etcd(cluster)
        start_databases(cluster)
        start_haproxy(cluster)
        make_database(cluster)
        start_nodes(cluster, keyward)
        seed(cluster)
    except BaseException:
        end_processes(cluster)
        say(f"several-nodes: ended what was started; the logs are in {folder}/log until `down`")
        raise
    show(cluster)


def binary(given):
    """The keyward to run, as an absolute path."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    places = [Path(given)] if given else [target / "release/keyward", target / "debug/keyward"]
    for place in places:
        if os.access(place, os.X_OK) and place.is_file():
            return str(place.resolve())
    if given:
        raise Failure(f"{given} is no program")
    raise Failure("build one first: `cargo build --release -p keyward`, or name it by --keyward")


def make_folder(folder):
    if len(os.fsencode(folder)) > FOLDER_BYTES_MAX:
        raise Failure(f"the path of the folder is longer than {FOLDER_BYTES_MAX} bytes")
    try:
        folder.mkdir(mode=0o711)
    except FileExistsError:
        raise Failure(f"{folder} exists already; end what runs there with `down`") from None
    except FileNotFoundError:
        raise Failure(f"{folder.parent} does not exist") from None
    os.chmod(folder, 0o711)
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root; the account it runs as must get in.
        enters = ["runuser", "-u", "postgres", "--", "test", "-x", str(folder)]
        if subprocess.run(enters, check=False).returncode != 0:
            folder.rmdir()
            raise Failure(f"the account postgres cannot enter {folder}; choose another by --dir")
    (folder / "log").mkdir(mode=0o700)


def own_folder(cluster, name, owner):
    folder = cluster.folder / name
    folder.mkdir(mode=0o700)
    give(folder, owner)
    return folder


def start_etcd(cluster):
    say("etcd")
    folder = own_folder(cluster, "etcd", "postgres")
    client = f"http://127.0.0.1:{cluster.port_of('etcd')}"
    peer = f"http://127.0.0.1:{cluster.port_of('etcd-peer')}"
    cluster.start("etcd", [
        "/usr/bin/etcd", "--name", "one", "--data-dir", str(folder / "data"),
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", f"one={peer}", "--logger", "zap", "--log-level", "warn",
    ], "postgres")
    port = cluster.port_of("etcd")
    cluster.wait("etcd", lambda: ask(port, "GET", "/health", seconds=2)[0] == 200, 30, "etcd")


def start_databases(cluster):
    say(f"PostgreSQL under Patroni: {', '.join(cluster.databases)}")
    for name in cluster.databases:
        folder = own_folder(cluster, name, "postgres")
        text = fill(
            "patroni.yml", name=name, folder=folder, binaries=postgres_binaries(),
            port=cluster.port_of(name), rest_port=cluster.port_of(f"{name}-rest"),
            etcd_port=cluster.port_of("etcd"),
            synchronous=json.dumps(cluster.state["is_synchronous"]),
            **{f"{whose}_password": cluster.state["passwords"][whose]
               for whose in ("superuser", "replication", "rest")},
        )
        write_private(folder / "patroni.yml", text, "postgres")
        cluster.start_database(name)
        if name == cluster.databases[0]:
            # The others would otherwise race it for the first start.
            cluster.wait("a primary", lambda: cluster.has_role("db-1", "primary"), 60, name)
    # Until a standby is in step, no commit is acknowledged.
    wanted = "synchronous" if cluster.state["is_synchronous"] else "replica"
    cluster.wait("a standby", lambda: cluster.with_role(wanted), 60, cluster.databases[-1])


def start_haproxy(cluster):
    say("HAProxy")
    lines = {
        "verifying_nodes":
            [f"{n} 127.0.0.1:{cluster.port_of(n)} check" for n in NODES],
        "changing_nodes":
            [f"{n} 127.0.0.1:{cluster.port_of(n)} track verifications/{n}" for n in NODES],
        "databases": [
            f"{n} 127.0.0.1:{cluster.port_of(n)} check port {cluster.port_of(f'{n}-rest')}"
            for n in cluster.databases
        ],
    }
    folder = own_folder(cluster, "haproxy", "haproxy")
    text = fill(
        "haproxy.cfg", folder=folder, no_node=NO_NODE, public_port=cluster.ports["public"],
        database_port=cluster.ports["database"],
        **{word: "\n".join(f"    server {line}" for line in of) for word, of in lines.items()},
    )
    write_private(folder / "haproxy.cfg", text, "haproxy")
    command = ["/usr/sbin/haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
    cluster.start("haproxy", command, "haproxy")
    # HAProxy takes every server for good until it has asked: a standby, too.
    cluster.wait("HAProxy finds the primary",
                 lambda: cluster.balanced("database") == [cluster.with_role("primary")],
                 30, "haproxy")


def make_database(cluster):
    """Makes the role and the database that Keyward gets, and owns."""
    passwords = cluster.state["passwords"]
    done = subprocess.run(
        [f"{postgres_binaries()}/psql", "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1",
         "-h", "127.0.0.1", "-p", str(cluster.ports["database"]), "-U", "postgres", "postgres"],
        # Not as an argument, which everybody on the machine can read.
        input=f"create role keyward login password '{passwords['keyward']}';\n"
              "create database keyward owner keyward;\n",
        env={"PATH": "/usr/bin:/bin", "PGPASSWORD": passwords["superuser"]},
        text=True, capture_output=True, check=False,
    )
    if done.returncode != 0:
        raise Failure(f"the database could not be made: {done.stderr.strip()}")


def start_nodes(cluster, keyward):
    say(f"Keyward: {', '.join(NODES)}")
    address = f"127.0.0.1:{cluster.ports['database']}"
    password = cluster.state["passwords"]["keyward"]
    write_private(cluster.folder / "database", f"postgres://keyward:{password}@{address}/keyward\n")
    for node in NODES:
        # Paths begin at the folder of the file. Every node has a data folder, for its counter file;
        # the secrets file is the same for all.
        write_private(cluster.folder / f"{node}.toml", "".join(
            f'{name} = "{value}"\n' for name, value in {
                "data": node, "database_file": "database", "secrets_file": "secrets.toml",
                "listen": f"127.0.0.1:{cluster.port_of(node)}",
                "metrics_listen": f"127.0.0.1:{cluster.port_of(f'{node}-metrics')}",
                "public_url": cluster.url, "lease": cluster.state["lease"],
            }.items()
        # Every connection comes from the load balancer.
        ) + "connections_per_address_max = 0\n")
    first = str(cluster.folder / f"{NODES[0]}.toml")
    founded = subprocess.run(
        [keyward, "init", "--config", first, "--json"], capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    if founded.returncode != 0:
        raise Failure(f"keyward init: {founded.stderr.strip()}")
    credentials = json.loads(founded.stdout)
    for name in ("client_id", "client_secret"):
        cluster.state[name] = credentials[name]
    for node in NODES:
        cluster.start(node, [keyward, "serve", "--config", str(cluster.folder / f"{node}.toml")])
    for node in NODES:
        cluster.wait(node, lambda node=node: cluster.is_ready(node), 30, node)


def seed(cluster):
    """An API and a user's key, so that there is something to verify; and the credentials."""
    public = cluster.ports["public"]
    cluster.wait("HAProxy finds the nodes",
                 lambda: cluster.balanced("verifications") == list(NODES), 10, "haproxy")
    token = cluster.token()

    def made(path, body):
        status, answer = ask(public, "POST", path, body=body, token=token)
        if status not in (200, 201):
            raise Failure(f"POST {path}: {status} {answer}")
        return answer

    api = made("/api/v1/apis", {"name": "Profiles", "audience": "https://api.example.com"})
    cluster.state["api_id"] = api["api"]["id"]
    made("/api/v1/user", {"id": "kp_ann", "profile": {"given_name": "Ann", "family_name": "Lee"}})
    key = made("/api/v1/api_keys", {
        "name": "Ann, laptop", "api_id": cluster.state["api_id"], "type": "user",
        "user_id": "kp_ann",
    })
    cluster.save()
    write_private(cluster.folder / "credentials", "".join(
        f"{name}={shlex.quote(value)}\n" for name, value in {
            "URL": cluster.url, "CLIENT_ID": cluster.state["client_id"],
            "CLIENT_SECRET": cluster.state["client_secret"], "API_ID": cluster.state["api_id"],
            "KEY_ID": key["api_key"]["id"], "API_KEY": key["api_key"]["key"],
        }.items()
    ))


def show(cluster):
    credentials = shlex.quote(str(cluster.folder / "credentials"))
    say(f"""
Keyward answers at {cluster.url}, from whichever of its {len(NODES)} nodes holds a lease.
CLIENT_ID, CLIENT_SECRET and a key are in {credentials}. Whose key is it? Paste:

. {credentials}
TOKEN=$(curl -s "$URL/oauth2/token" -d grant_type=client_credentials -d "client_id=$CLIENT_ID" \\
  -d "client_secret=$CLIENT_SECRET" -d "audience=$URL/api" -d scope=verify:api_keys \\
  | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')
curl -s "$URL/api/v1/api_keys/verify" -H "Authorization: Bearer $TOKEN" \\
  -H 'Content-Type: application/json' -d "{{\\"api_key\\": \\"$API_KEY\\"}}"
""")
    for verb, what in (("status", "shows what runs"), ("failover", "kills the primary and watches"),
                       ("down", "ends and removes everything")):
        say(f"deploy/several-nodes {verb} --dir {shlex.quote(str(cluster.folder))}  # {what}")


def look(cluster):
    """How everything is, as one document."""
    components = []

    def add(name, kind, is_healthy, **more):
        components.append({
            "name": name, "kind": kind, "pid": cluster.pid(name), "port": cluster.port_of(
                {"haproxy": "public"}.get(name, name)),
            "is_healthy": cluster.pid(name) is not None and is_healthy, **more,
        })

    etcd = ask(cluster.port_of("etcd"), "GET", "/health", seconds=2)[0] == 200
    add("etcd", "etcd", etcd)
    for name in cluster.databases:
        status, patroni = cluster.patroni(name, "/patroni")
        role = "none"
        if cluster.has_role(name, "primary"):
            role = "primary"
        elif cluster.has_role(name, "synchronous"):
            role = "synchronous standby"
        elif cluster.has_role(name, "replica"):
            role = "standby"
        add(name, "postgresql", status is not None and patroni.get("state") == "running",
            role=role, timeline=patroni.get("timeline"), postmaster_pid=cluster.postmaster(name),
            rest_port=cluster.port_of(f"{name}-rest"))
    for node in NODES:
        status, answer = ask(cluster.port_of(node), "GET", "/readyz", seconds=2)
        warnings = answer.get("warnings", []) if isinstance(answer, dict) else []
        add(node, "keyward", status == 200, readyz=status, warnings=warnings,
            metrics_port=cluster.port_of(f"{node}-metrics"))
    status = ask(cluster.ports["public"], "GET", "/readyz", seconds=5)[0]
    add("haproxy", "haproxy", status == 200, readyz=status,
        database_port=cluster.ports["database"])
    roles = [component.get("role") for component in components]
    wanted = "synchronous standby" if cluster.state["is_synchronous"] else "standby"
    is_safe = roles.count("primary") == 1 and wanted in roles
    return {
        "folder": str(cluster.folder), "url": cluster.url,
        "credentials": str(cluster.folder / "credentials"), "lease": cluster.state["lease"],
        "is_healthy": is_safe and all(c["is_healthy"] for c in components),
        "components": components,
    }


def status(arguments):
    found = look(Cluster(arguments.dir).load())
    if arguments.json:
        say(json.dumps(found, indent=2))
    else:
        say(f"{found['url']}  ({found['folder']})")
        for component in found["components"]:
            state = "ok  " if component["is_healthy"] else "FAIL"
            more = "".join(
                f"  {name} {component[name]}"
                for name in ("role", "timeline", "readyz", "warnings") if component.get(name)
            )
            pid = component["pid"] or "-"
            say(f"{state}  {component['name']:<8} pid {pid:<8} port {component['port']}{more}")
    return 0 if found["is_healthy"] else 1


def end_processes(cluster):
    """Ends what `up` and `failover` started, and nothing else, so that each can still reach what
    it needs: the nodes give their leases back, the databases stop in order."""
    running = cluster.state["processes"]
    cluster.end([name for name in NODES if name in running], 20)
    cluster.end([name for name in ("haproxy",) if name in running], 5)
    names = [name for name in cluster.databases if name in running]
    primary = next((name for name in names if cluster.has_role(name, "primary")), None)
    cluster.end([name for name in names if name != primary], 30)
    cluster.end([primary] if primary else [], 30)
    # A PostgreSQL whose Patroni was killed goes on by itself.
    for name in cluster.databases:
        if cluster.postmaster(name) is not None:
            signal_all([cluster.postmaster(name)], signal.SIGQUIT)
            settles(lambda name=name: cluster.postmaster(name) is None, 20)
    cluster.end([name for name in ("etcd",) if name in running], 10)


def down(arguments):
    cluster = Cluster(arguments.dir).load()
    end_processes(cluster)
    shutil.rmtree(cluster.folder)
    say(f"ended everything and removed {cluster.folder}")


def fail_over(arguments):
    return failover.run(Cluster(arguments.dir).load(), arguments)


def main():
    parser = argparse.ArgumentParser(
        prog="several-nodes", description="Three Keyward nodes on a replicated PostgreSQL.")
    verbs = parser.add_subparsers(required=True, metavar="up|status|failover|down")

    def verb(name, run, about):
        added = verbs.add_parser(name, help=about, description=about)
        added.set_defaults(run=run)
        default = str(Path(tempfile.gettempdir()) / "keyward-several-nodes")
        added.add_argument("--dir", default=default, help=f"its folder [default: {default}]")
        return added

    starts = verb("up", up, "install what is missing and start everything")
    starts.add_argument("--keyward", help="the binary [default: the one in target/]")
    starts.add_argument("--databases", type=int, choices=(2, 3), default=2,
                        help="PostgreSQL servers [default: 2]")
    starts.add_argument("--lease", choices=("default", "strict", "availability"), default="default",
                        help="the nodes' lease: 15 s, 5 s or 60 s [default: default]")
    starts.add_argument("--asynchronous", action="store_true",
                        help="do not wait for standbys, to see what is lost then")
    shows = verb("status", status, "show what runs; exits 1 when something is wrong")
    shows.add_argument("--json", action="store_true", help="print one JSON document")
    fails = verb("failover", fail_over, "kill the primary database and watch")
    fails.add_argument("--rate", type=int, default=100,
                       help="verifications a second [default: 100]")
    fails.add_argument("--absent", type=float, default=20,
                       help="how long after the promotion the killed server stays away, in seconds"
                       " [default: 20]")
    fails.add_argument("--lag", type=float, default=0,
                       help="stop replication this many seconds before the kill [default: 0]")
    fails.add_argument("--json", action="store_true", help="print one JSON document")
    verb("down", down, "end everything and remove the folder")
    arguments = parser.parse_args()
    try:
        return arguments.run(arguments) or 0
    except Failure as failure:
        print(f"several-nodes: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
