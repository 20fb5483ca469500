"""Kills the primary database under load, as a machine dies, and tells what clients saw of it.

While verifications go through the load balancer, keys are created and revoked, and every node is
asked on its own about every key whose revocation was acknowledged. The primary's Patroni and all
its PostgreSQL processes get SIGKILL; some time after another was promoted the dead server comes
back as a standby. What was acknowledged must stand at the end: keys created are good, keys revoked
are refused, on every node and at every moment in between.
"""

import contextlib
import http.client
import json
import signal
import threading
import time
from collections import Counter

from cluster import NODES, Failure, ask, settles, signal_all

# Clients that verify at the same time, each on one connection that it keeps.
VERIFIERS = 4
# Before the primary is killed, so that the figures have something to be compared with.
CALM_S = 3
# How long everything may take to be as it was.
RECOVERY_WAIT_MAX_S = 180
# Keys that are made to be revoked, one each 100 ms, and one a second while that fails: enough for
# half a minute of the former and a minute of the latter.
REVOKED_MAX = 360
REVOKE_EVERY_S = 0.1
REVOKE_AFTER_FAILURE_S = 1
CREATE_EVERY_S = 0.25
WATCH_EVERY_S = 0.1
# A node gives up waiting for its database after 5 s; a client that waits longer hears why.
PATIENCE_S = 20

# Answers that promise that nothing was changed: a node's, and HAProxy's when it found no node.
NOTHING_CHANGED = ("503 UNAVAILABLE", "503 NO_NODE_IS_READY")


class Trial:
    """What the threads share."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.port = cluster.ports["public"]
        self.token = cluster.token()
        self.over = threading.Event()
        self.threads = []
        # Verifications through the load balancer: (begun, ended, outcome).
        self.verifications = []
        # Attempts to create a key: (begun, ended, outcome).
        self.creations = []
        # Attempts to revoke one.
        self.revocations = []
        # Keys whose creation was acknowledged, and those whose revocation was.
        self.created = []
        self.revoked = []
        # Keys of which the revocation's answer was that nothing was changed, and those without a
        # yes or no, of which either may be true.
        self.refused = []
        self.in_doubt = []
        # What nodes said of keys that were revoked, and when each was ready.
        self.watched = Counter()
        self.stale = []
        self.readiness = {node: [] for node in NODES}

    def run(self, task, *arguments):
        thread = threading.Thread(target=task, args=arguments, daemon=True)
        self.threads.append(thread)
        thread.start()

    def finish(self):
        self.over.set()
        for thread in self.threads:
            thread.join(2 * PATIENCE_S)

    def new_key(self):
        """Tries to create a key: (outcome, id and secret or None)."""
        body = {
            "name": "failover", "api_id": self.cluster.state["api_id"], "type": "user",
            "user_id": "kp_ann",
        }
        status, answer = ask(self.port, "POST", "/api/v1/api_keys", body=body, token=self.token,
                             seconds=PATIENCE_S)
        key = (answer["api_key"]["id"], answer["api_key"]["key"]) if status == 201 else None
        return outcome_of(status, answer, 201), key

    # ---- Threads

    def verify_steadily(self, key, each_s):
        """Verifies one good key at a fixed pace."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        due = time.monotonic()
        while not self.over.wait(max(0.0, due - time.monotonic())):
            due = max(due + each_s, time.monotonic() - 1)
            begun = time.monotonic()
            verdict = verify(self.port, self.token, key[1], connection)
            self.verifications.append((begun, time.monotonic(), verdict))

    def create_steadily(self):
        while not self.over.wait(CREATE_EVERY_S):
            begun = time.monotonic()
            outcome, key = self.new_key()
            self.creations.append((begun, time.monotonic(), outcome))
            if key is not None:
                self.created.append(key)

    def revoke_steadily(self, keys):
        pause_s = REVOKE_EVERY_S
        for key in keys:
            if self.over.wait(pause_s):
                return
            begun = time.monotonic()
            status, answer = ask(self.port, "DELETE", f"/api/v1/api_keys/{key[0]}",
                                 token=self.token, seconds=2 * PATIENCE_S)
            outcome = outcome_of(status, answer, 200)
            self.revocations.append((begun, time.monotonic(), outcome))
            pause_s = REVOKE_EVERY_S if outcome == "done" else REVOKE_AFTER_FAILURE_S
            if outcome == "done":
                self.revoked.append(key)
            elif outcome in NOTHING_CHANGED:
                self.refused.append(key)
            else:
                self.in_doubt.append(key)

    def watch(self, node):
        """Asks one node, past the load balancer, whether it is ready and what it says of the
        newest and of another key that was revoked."""
        port = self.cluster.port_of(node)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        turn = 0
        while not self.over.wait(WATCH_EVERY_S):
            is_ready = self.cluster.is_ready(node)
            self.readiness[node].append((time.monotonic(), is_ready))
            revoked = list(self.revoked)
            turn += 1
            for key in {revoked[-1], revoked[turn % len(revoked)]} if revoked else ():
                verdict = verify(port, self.token, key[1], connection)
                self.watched[verdict] += 1
                if verdict == "valid":
                    self.stale.append((node, key[0], time.monotonic()))


def verify(port, token, key, connection=None):
    """What a verification came to, in a word: `valid`, the code of a refusal, or why not."""
    status, answer = ask(port, "POST", "/api/v1/api_keys/verify", body={"api_key": key},
                         token=token, seconds=PATIENCE_S, connection=connection)
    if status == 200 and isinstance(answer, dict):
        return "valid" if answer["is_valid"] else answer["code"]
    return f"no answer ({answer})" if status is None else str(status)


def outcome_of(status, answer, expected):
    """An attempt to change something, in a word: `done`, or the status and the error's code."""
    if status == expected:
        return "done"
    code = ""
    with contextlib.suppress(KeyError, IndexError, TypeError):
        code = " " + answer["errors"][0]["code"]
    return f"no answer ({answer})" if status is None else f"{status}{code}"


def run(cluster, arguments):
    """Makes the trial, prints what was seen, and returns the exit code."""
    primary = cluster.with_role("primary")
    if primary is None or cluster.with_role(role_of_heir(cluster)) is None:
        raise Failure("there is no primary with a standby that could follow it; see `status`")

    def tell(text):
        if not arguments.json:
            print(text, flush=True)

    trial = Trial(cluster)
    tell("making keys")
    good = required(trial.new_key())
    doomed = [required(trial.new_key()) for _ in range(REVOKED_MAX)]
    for _ in range(VERIFIERS):
        trial.run(trial.verify_steadily, good, VERIFIERS / arguments.rate)
    trial.run(trial.create_steadily)
    trial.run(trial.revoke_steadily, doomed)
    for node in NODES:
        trial.run(trial.watch, node)
    time.sleep(CALM_S)
    try:
        times = kill_and_wait(trial, primary, arguments, tell)
    finally:
        trial.finish()
    report = sum_up(trial, primary, times)
    print(json.dumps(report, indent=2) if arguments.json else in_words(report), flush=True)
    return 0 if report["is_kept"] and report["is_whole"] else 1


def role_of_heir(cluster):
    """What a server must be to be promoted without a loss, or at all."""
    return "synchronous" if cluster.state["is_synchronous"] else "replica"


def required(made):
    outcome, key = made
    if key is None:
        raise Failure(f"a key could not be created: {outcome}")
    return key


def kill_and_wait(trial, primary, arguments, tell):
    """The trial itself; when each thing happened, by the monotonic clock."""
    cluster = trial.cluster
    others = [name for name in cluster.databases if name != primary]
    times = {"timeline_before": cluster.patroni(primary, "/patroni")[1].get("timeline")}
    if arguments.lag:
        tell(f"stopping replication for {arguments.lag:g} s")
        signal_all(cluster.senders(primary), signal.SIGSTOP)
        trial.over.wait(arguments.lag)
    victims = cluster.database_processes(primary)
    tell(f"killing {primary}: {len(victims)} processes")
    times["killed"] = time.monotonic()
    signal_all(victims, signal.SIGKILL)
    promoted = []

    def is_promoted():
        promoted[:] = [name for name in others if cluster.has_role(name, "primary")]
        return promoted

    if not settles(is_promoted, RECOVERY_WAIT_MAX_S):
        raise Failure(f"nobody was promoted within {RECOVERY_WAIT_MAX_S} s")
    times["promoted"] = time.monotonic()
    times["new_primary"] = promoted[0]
    tell(f"{promoted[0]} is the primary after {times['promoted'] - times['killed']:.1f} s;"
         f" {primary} stays away for {arguments.absent:g} s more")
    trial.over.wait(arguments.absent)
    cluster.start_database(primary)
    times["returned"] = time.monotonic()
    tell(f"{primary} comes back")

    def is_whole():
        return cluster.has_role(primary, "replica") and cluster.with_role("primary") \
            and cluster.with_role(role_of_heir(cluster))

    times["is_whole"] = bool(settles(is_whole, RECOVERY_WAIT_MAX_S))
    times["whole"] = time.monotonic()
    times["timeline_after"] = cluster.patroni(promoted[0], "/patroni")[1].get("timeline")

    def works_again():
        return all(cluster.is_ready(node) for node in NODES) and any(
            begun > times["whole"] and outcome == "done"
            for begun, _, outcome in trial.creations[-20:])

    times["works"] = bool(settles(works_again, RECOVERY_WAIT_MAX_S))
    # Some more of the calm after, to be sure.
    trial.over.wait(CALM_S)
    return times


def sum_up(trial, primary, times):
    """The figures, in seconds since the kill."""
    killed = times["killed"]
    after = [each for each in trial.verifications if each[1] >= killed]
    # A write that was on its way when the primary died may have been done before.
    written = [ended - killed for begun, ended, outcome in trial.creations
               if begun >= killed and outcome == "done"]
    failed = [ended - killed for begun, ended, outcome in trial.creations
              if ended >= killed and outcome != "done"]
    lost, revived, untrue, doubtful = judge(trial)
    return {
        "killed": primary,
        "promoted": times["new_primary"],
        "timelines": [times["timeline_before"], times["timeline_after"]],
        "lease": trial.cluster.state["lease"],
        "is_synchronous": trial.cluster.state["is_synchronous"],
        "promoted_after_s": round(times["promoted"] - killed, 1),
        "killed_server_returned_after_s": round(times["returned"] - killed, 1),
        "killed_server_standby_after_s":
            round(times["whole"] - killed, 1) if times["is_whole"] else None,
        "first_write_after_s": round(min(written), 1) if written else None,
        "last_failed_write_after_s": round(max(failed), 1) if failed else None,
        "creations": dict(Counter(outcome for _, ended, outcome in trial.creations
                                  if ended >= killed)),
        "revocations": dict(Counter(outcome for _, ended, outcome in trial.revocations
                                    if ended >= killed)),
        "slowest_acknowledged_revocation_s": round(max(
            (ended - begun for begun, ended, outcome in trial.revocations if outcome == "done"),
            default=0), 2),
        "verifications_before": dict(Counter(each[2] for each in trial.verifications
                                             if each[1] < killed)),
        "verifications": dict(Counter(outcome for _, _, outcome in after)),
        "unanswered_at_s": [round(ended - killed, 1) for _, ended, outcome in after
                            if outcome not in ("valid", "503")],
        "not_valid_from_s": edge(min, after, killed),
        "not_valid_until_s": edge(max, after, killed),
        "slowest_verification_ms": round(1000 * max(ended - begun for begun, ended, _ in after)),
        "nodes_not_ready_s": {node: gaps(samples, killed)
                              for node, samples in trial.readiness.items()},
        "asked_of_each_node_about_revoked_keys": dict(trial.watched),
        "stale_answers": len(trial.stale),
        "acknowledged_revocations": len(trial.revoked),
        "acknowledged_revocations_lost": revived,
        "acknowledged_creations": len(trial.created),
        "acknowledged_creations_lost": lost,
        "answered_nothing_changed": len(trial.refused),
        "answered_nothing_changed_but_revoked": untrue,
        "revocations_in_doubt": doubtful,
        "is_whole": times["is_whole"] and times["works"],
        # A good key may go unanswered, but it is never refused.
        "is_kept": not (trial.stale or revived or lost or untrue)
                   and not any(outcome.startswith("API_KEY") for _, _, outcome in after),
    }


def judge(trial):
    """Asks every node about every key: creations and revocations that were lost, revocations that
    happened against their answer, and what became of those in doubt."""
    lost, revived, untrue, doubtful = [], [], [], Counter()
    for node in NODES:
        port = trial.cluster.port_of(node)
        for key in trial.created:
            verdict = verify(port, trial.token, key[1])
            if verdict != "valid":
                lost.append({"key_id": key[0], "node": node, "answer": verdict})
        for key in trial.revoked:
            verdict = verify(port, trial.token, key[1])
            if verdict != "API_KEY_REVOKED":
                revived.append({"key_id": key[0], "node": node, "answer": verdict})
        for key in trial.refused:
            verdict = verify(port, trial.token, key[1])
            if verdict != "valid":
                untrue.append({"key_id": key[0], "node": node, "answer": verdict})
        doubtful.update(verify(port, trial.token, key[1]) for key in trial.in_doubt)
    return lost, revived, untrue, dict(doubtful)


def edge(pick, verifications, killed):
    """When the first or the last verification without a verdict ended, or None."""
    found = [ended - killed for _, ended, outcome in verifications if outcome != "valid"]
    return round(pick(found), 1) if found else None


def gaps(samples, killed):
    """The stretches in which a node was not ready, as [from, to] in seconds since the kill."""
    found = []
    for at, is_ready in samples:
        if not is_ready and (not found or found[-1][1] is not None):
            found.append([round(at - killed, 1), None])
        elif is_ready and found and found[-1][1] is None:
            found[-1][1] = round(at - killed, 1)
    return found


def in_words(report):
    def listed(counts):
        return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"

    def at(seconds):
        return "never" if seconds is None else f"after {seconds} s"

    def keys(found):
        """How many keys, and what the nodes say of them."""
        count = len({each["key_id"] for each in found})
        said = listed(Counter(f"times {each['answer']}" for each in found))
        return f"{count} ({said})" if found else "0"

    not_ready = "; ".join(
        f"{node} {', '.join(f'{a} to {b} s' for a, b in stretches) or 'always ready'}"
        for node, stretches in report["nodes_not_ready_s"].items())
    silence = "never without a verdict"
    if report["not_valid_from_s"] is not None:
        silence = f"without one from {report['not_valid_from_s']} s to" \
            f" {report['not_valid_until_s']} s"
    return "\n".join([
        "",
        f"{report['killed']} was killed; {report['promoted']} was promoted"
        f" {at(report['promoted_after_s'])} (timeline {report['timelines'][0]} to"
        f" {report['timelines'][1]}).",
        f"{report['killed']} came back {at(report['killed_server_returned_after_s'])} and was a"
        f" standby {at(report['killed_server_standby_after_s'])}.",
        f"Writes: the first new key {at(report['first_write_after_s'])}, the last failure"
        f" {at(report['last_failed_write_after_s'])}.",
        f"  creations since the kill: {listed(report['creations'])}",
        f"  revocations since the kill: {listed(report['revocations'])}; the slowest that was"
        f" acknowledged took {report['slowest_acknowledged_revocation_s']} s",
        f"Verifications before: {listed(report['verifications_before'])}.",
        f"Verifications since: {listed(report['verifications'])}; {silence}; the slowest took"
        f" {report['slowest_verification_ms']} ms.",
        f"  nodes not ready: {not_ready}",
        f"Revoked keys, each node asked meanwhile:"
        f" {listed(report['asked_of_each_node_about_revoked_keys'])};"
        f" {report['stale_answers']} stale.",
        f"Acknowledged and afterwards looked up on every node: {report['acknowledged_creations']}"
        f" creations, of which lost {keys(report['acknowledged_creations_lost'])};"
        f" {report['acknowledged_revocations']} revocations, of which lost"
        f" {keys(report['acknowledged_revocations_lost'])}.",
        f"Revocations answered with \"nothing was changed\": {report['answered_nothing_changed']},"
        f" untrue {keys(report['answered_nothing_changed_but_revoked'])}; those in doubt, asked of"
        f" each node: {listed(report['revocations_in_doubt'])}.",
        "Everything acknowledged stands." if report["is_kept"] else "NOT KEPT.",
        *([] if report["is_whole"] else ["It did not become whole again; see `status`."]),
    ])
