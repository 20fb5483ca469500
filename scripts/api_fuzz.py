"""What scripts/api-fuzz knows of Keyward: how to seed a server, and what counts as a finding.

As a program it talks to a server: `ready`, `token`, `seed`. As a module it is loaded into
Schemathesis and (1) puts ids of things that exist into half of the questions, because random ids
meet only 404s, (2) keeps the tester from sawing off the branch it sits on, (3) forgives refusals
that a document cannot express, such as a reference to what does not exist, and (4) looks for
headers that the document does not name.
"""

import base64
import hashlib
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

# Any proxy would only come between.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(base, method, path, body=None, token=None):
    """One JSON call; the answer's object."""
    request = urllib.request.Request(base + path, method=method)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    with OPENER.open(request, timeout=20) as answer:
        return json.load(answer)


def ask_token(base, init):
    form = {
        "grant_type": "client_credentials",
        "client_id": init["client_id"],
        "client_secret": init["client_secret"],
        "audience": f"{base}/api",
    }
    data = urllib.parse.urlencode(form).encode()
    with OPENER.open(f"{base}/oauth2/token", data=data, timeout=20) as answer:
        return json.load(answer)["access_token"]


def seed(base, init):
    """A few things of every kind; their ids, and secrets that are good."""
    token = ask_token(base, init)

    def post(path, body):
        return call(base, "POST", f"/api/v1{path}", body, token)

    listed = call(base, "GET", "/api/v1/apis", None, token)["apis"]
    seeds = {
        "own_application": init["client_id"],
        "management_api": next(api["id"] for api in listed if api["is_management_api"]),
        "api_id": [],
        "scope_id": [],
        "application_id": [],
        "user_id": [],
        "org_code": [],
        "key_id": [],
        "secret": [],
    }
    for number in range(3):
        # 4-byte characters and odd ids are part of life.
        api = post("/apis", {"name": f"API {number} 🗝", "audience": f"https://{number}.test"})["api"]["id"]
        scope = post(f"/apis/{api}/scopes", {"key": f"read:{number}"})["scope"]["id"]
        post(f"/apis/{api}/scopes", {"key": f"write:{number}", "description": "May write."})
        application = post("/applications", {"name": f"Job {number}", "type": "m2m"})["application"]
        link = {"applications": [{"id": application["id"]}]}
        call(base, "PATCH", f"/api/v1/apis/{api}/applications", link, token)
        user = post("/user", {"id": f"auth0|odd/{number}?&#%+ü"[: 12 + number], "profile": {"given_name": "Ada"}})["id"]
        org = post("/organization", {"name": f"Acme {number}", "external_id": f"crm-{number}"})
        org = org["organization"]["code"]
        post(f"/organizations/{urllib.parse.quote(org, safe='')}/users", {"users": [{"id": user}]})
        for owner in ({"user_id": user}, {"org_code": org}, {"user_id": user, "org_code": org}):
            wish = {"name": "Nightly", "api_id": api, "scope_ids": [scope], **owner}
            key = post("/api_keys", wish)["api_key"]
            seeds["key_id"].append(key["id"])
            seeds["secret"].append(key["key"])
        digest = hashlib.sha256(f"elsewhere-{number}".encode()).digest()
        imported = {"name": "Old", "api_id": api, "type": "environment", "encoding": "base64"}
        imported |= {"hash": base64.b64encode(digest).decode(), "algorithm": "sha256"}
        post("/api_keys/import", {"keys": [imported]})
        seeds["secret"].append(f"elsewhere-{number}")
        for name, value in (
            ("api_id", api),
            ("scope_id", scope),
            ("application_id", application["id"]),
            ("user_id", user),
            ("org_code", org),
        ):
            seeds[name].append(value)
    return seeds


def is_ready(base):
    try:
        return OPENER.open(f"{base}/readyz", timeout=2).status == 200
    except OSError:
        return False


def main():
    verb, base, *rest = sys.argv[1:]
    if verb == "ready":
        return 0 if is_ready(base) else 1
    with open(rest[0], encoding="utf-8") as file:
        init = json.load(file)
    print(ask_token(base, init) if verb == "token" else json.dumps(seed(base, init)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

import schemathesis  # noqa: E402
from schemathesis.core.failures import AcceptedNegativeData  # noqa: E402
from schemathesis.openapi.checks import RejectedPositiveData  # noqa: E402

with open(os.environ["KEYWARD_FUZZ_SEEDS"], encoding="utf-8") as seeds_file:
    SEEDS = json.load(seeds_file)

# Words of refusals that depend on what is stored, or on the time. A document cannot say them.
STATE = {
    "API_KEYS_KNOWN",
    "BAD_CURSOR",
    "CONTRADICTORY_USERS",
    "DELETED_USER",
    "EXPIRES_IN_PAST",
    "KEY_REVOKED",
    "MANAGEMENT_API",
    "NEVER_VALID",
    "NOT_A_MEMBER",
    "NOT_CONNECTED",
    "UNKNOWN_API",
    "UNKNOWN_APPLICATION",
    "UNKNOWN_KEY",
    "UNKNOWN_ORGANIZATION",
    "UNKNOWN_SCOPE",
    "UNKNOWN_USER",
}

# Headers of every answer, which belong to HTTP or are told in the document's introduction.
COMMON = {"content-type", "content-length", "date", "connection", "x-request-id"}

# Which seed goes into a field or parameter of this name.
KINDS = {
    "api_id": "api_id",
    "api_key": "secret",
    "application_id": "application_id",
    "code": "org_code",
    "id": "user_id",
    "key_id": "key_id",
    "org_code": "org_code",
    "organization_code": "org_code",
    "scope_id": "scope_id",
    "starting_after": "key_id",
    "user_id": "user_id",
}


def pick(kind, instead_of):
    """A seed for every other value, always the same one for the same value."""
    number = hashlib.sha256(repr(instead_of).encode()).digest()[0]
    return SEEDS[kind][number // 2 % len(SEEDS[kind])] if number % 2 else instead_of


def seeded(values, kinds):
    """`values` with seeds in the places that `kinds` names."""
    if isinstance(values, list):
        return [seeded(value, kinds) for value in values]
    if not isinstance(values, dict):
        return values
    changed = {}
    for name, value in values.items():
        if isinstance(value, str) and name in kinds:
            value = pick(kinds[name], value)
        elif isinstance(value, (dict, list)) and name != "metadata":
            value = seeded(value, kinds)
        changed[name] = value
    return changed


@schemathesis.hook
def before_call(context, case, kwargs):
    path, method = case.operation.path, case.method.upper()
    if case.meta is not None and case.meta.generation.mode.is_positive:
        kinds = dict(KINDS)
        if path.startswith("/api/v1/apis"):
            kinds["id"] = "application_id"
        if method == "POST" and path in ("/api/v1/user", "/api/v1/organization"):
            # A new owner takes a new id.
            kinds = {name: kind for name, kind in kinds.items() if name not in ("id", "code")}
        if case.path_parameters:
            case.path_parameters = seeded(case.path_parameters, kinds)
        if case.query:
            case.query = seeded(case.query, kinds)
        if isinstance(case.body, dict) and path.startswith("/api/v1"):
            case.body = seeded(case.body, kinds)
    if method == "GET" or not case.path_parameters:
        return
    # The tester's own application and its scopes stay as they are.
    own = {"application_id": "own_application", "api_id": "management_api"}
    for name, kind in own.items():
        if str(case.path_parameters.get(name, "")).lower() == SEEDS[kind]:
            case.path_parameters[name] = SEEDS[name][0]


def code_of(response):
    """The word for programs in an error's answer."""
    try:
        errors = json.loads(response.content)["errors"]
        return errors["code"] if isinstance(errors, dict) else errors[0]["code"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def is_absent_in_query(case):
    """Whether a parameter is empty or the word `null`, which published clients send for nothing."""
    return any(value in ("", "null", None) for value in (case.query or {}).values())


@schemathesis.hook
def filter_failure(context, failure, case, response):
    if isinstance(failure, RejectedPositiveData):
        return not (response.status_code == 400 and code_of(response) in STATE)
    if isinstance(failure, AcceptedNegativeData):
        return not is_absent_in_query(case)
    return True


@schemathesis.check
def only_documented_headers(ctx, response, case):
    """Every header that is sent stands in the document."""
    definition = case.operation.responses.find_by_status_code(response.status_code)
    documented = {name.lower() for name in definition.headers} if definition else set()
    unknown = {name.lower() for name in response.headers} - documented - COMMON
    assert not unknown, f"headers that the document does not name: {', '.join(sorted(unknown))}"
