"""What scripts/api-fuzz knows of Keyward: how to seed a server, and what counts as a finding.

As a program it talks to a server: `ready`, `token`, `seed`; `reached` looks at what was done. As a
module it is loaded into Schemathesis and

- puts ids of things that exist into most of the good questions, because random ids meet only 404s,
- keeps the tester from sawing off the branch it sits on,
- forgives refusals that a document cannot express, such as a reference to what does not exist,
- looks for headers that the document does not name,
- notes which routes were answered with a success: all must be.
"""

import atexit
import base64
import hashlib
import itertools
import json
import os
import re
import sys
import urllib.parse
import urllib.request

# Any proxy would only come between.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# How many sets of things are made: to be asked about, to be changed, and to be deleted.
SETS = {"living": 3, "changing": 12, "doomed": 12}


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


def make_set(post, patch, number):
    """One of every kind of thing, all of which go together."""
    # 4-byte characters and odd ids are part of life.
    audience = f"https://api-{number}.example"
    api = post("/apis", {"name": f"API {number} 🗝", "audience": audience})["api"]["id"]
    scope = {"key": f"read:{number}", "description": "May read."}
    scope = post(f"/apis/{api}/scopes", scope)["scope"]["id"]
    application = post("/applications", {"name": f"Job {number}", "type": "m2m"})["application"]
    patch(f"/apis/{api}/applications", {"applications": [{"id": application["id"]}]})
    post(f"/apis/{api}/applications/{application['id']}/scopes/{scope}", None)
    user = {"id": f"auth0|{number}/?&#%+ü", "profile": {"given_name": "Ada"}}
    user = post("/user", user)["id"]
    org = {"name": f"Acme {number}", "external_id": f"crm-{number}"}
    org = post("/organization", org)["organization"]["code"]
    post(f"/organizations/{org}/users", {"users": [{"id": user}]})
    wish = {"name": "Nightly", "api_id": api, "scope_ids": [scope]}
    key = post("/api_keys", {**wish, "user_id": user, "org_code": org})["api_key"]
    imported = {"name": "Old", "api_id": api, "type": "environment", "encoding": "base64"}
    imported["hash"] = base64.b64encode(hashlib.sha256(f"old-{number}".encode()).digest()).decode()
    post("/api_keys/import", {"keys": [imported]})
    return {
        "api_id": api,
        "scope_id": scope,
        "application_id": application["id"],
        "client_secret": application["client_secret"],
        "audience": audience,
        "user_id": user,
        "org_code": org,
        "key_id": key["id"],
        "secret": key["key"] if number % 2 else f"old-{number}",
    }


def seed(base, init):
    """What the tester has to know: sets of things, and its own."""
    token = ask_token(base, init)

    def post(path, body):
        return call(base, "POST", f"/api/v1{path}", body, token)

    def patch(path, body):
        return call(base, "PATCH", f"/api/v1{path}", body, token)

    def get(path):
        return call(base, "GET", f"/api/v1{path}", None, token)

    numbers = itertools.count()
    seeds = {
        name: [make_set(post, patch, next(numbers)) for _ in range(count)]
        for name, count in SETS.items()
    }
    for one in seeds["living"]:
        one["next_token"] = {
            path: get(f"{path}?page_size=1")["next_token"]
            for path in ("/users", "/organizations", "/applications")
        }
    apis = get("/apis")["apis"]
    seeds["own_application"] = init["client_id"]
    seeds["management_api"] = next(api["id"] for api in apis if api["is_management_api"])
    return seeds


def is_ready(base):
    try:
        return OPENER.open(f"{base}/readyz", timeout=2).status == 200
    except OSError:
        return False


def unreached(document, reached):
    """The routes of the document that never succeeded."""
    with open(document, encoding="utf-8") as file:
        paths = json.load(file)["paths"]
    with open(reached, encoding="utf-8") as file:
        succeeded = set(file.read().splitlines())
    methods = {"get", "post", "put", "patch", "delete"}
    routes = {f"{m.upper()} {path}" for path, item in paths.items() for m in item if m in methods}
    return sorted(routes - succeeded)


def main():
    verb, first, *rest = sys.argv[1:]
    if verb == "ready":
        return 0 if is_ready(first) else 1
    if verb == "reached":
        missing = unreached(first, rest[0])
        for route in missing:
            print(f"never answered with a success: {route}")
        return 1 if missing else 0
    with open(rest[0], encoding="utf-8") as file:
        init = json.load(file)
    print(ask_token(first, init) if verb == "token" else json.dumps(seed(first, init)))
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
    "BAD_CURSOR",
    "CONTRADICTORY_USERS",
    "DELETED_USER",
    "EXPIRES_IN_PAST",
    "IDEMPOTENCY_KEY_REUSED",
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

# Which part of a set goes into a field or parameter of this name.
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
# Fields that no two things may have in common.
UNIQUE = {"audience", "email", "external_id", "handle", "provided_id"}
COUNTER = itertools.count()


def seeded(values, kinds, one, makes_new):
    """`values` with parts of the set `one` in the places that `kinds` names."""
    if isinstance(values, list):
        return [seeded(value, kinds, one, makes_new) for value in values]
    if not isinstance(values, dict):
        return values
    changed = {}
    for name, value in values.items():
        if isinstance(value, str) and name in kinds:
            value = one[kinds[name]]
        elif isinstance(value, str) and name in UNIQUE | makes_new:
            value = f"new@{name.replace('_', '-')}-{next(COUNTER)}.example"
        elif name == "scope_ids" and isinstance(value, list) and value:
            value = [one["scope_id"]]
        elif name == "hash" and values.get("encoding") in (None, "hex"):
            value = hashlib.sha256(str(next(COUNTER)).encode()).hexdigest()
        elif isinstance(value, (dict, list)) and name != "metadata":
            value = seeded(value, kinds, one, makes_new)
        changed[name] = value
    return changed


def improve(case, method, path, draw):
    """Makes a good question one about things that exist."""
    sets = SEEDS[which_set(method, path)]
    one = dict(sets[draw % len(sets)])
    makes_new = set()
    kinds = dict(KINDS)
    if path.startswith("/api/v1/apis"):
        kinds["id"] = "application_id"
    if method == "POST" and path in ("/api/v1/user", "/api/v1/organization"):
        makes_new = {"id", "code"}
        kinds = {name: kind for name, kind in kinds.items() if name not in makes_new}
    if path == "/oauth2/token":
        kinds |= {"client_id": "application_id", "client_secret": "client_secret"}
        if "audience" in (case.body or {}):
            case.body["audience"] = [one["audience"]]
    tokens = one.get("next_token", {}).get(path.removeprefix("/api/v1"))
    if tokens and case.query and "next_token" in case.query:
        kinds["next_token"] = "next_token"
        one["next_token"] = tokens
    if case.path_parameters:
        # Paths hold them as they go over the wire.
        wire = {name: urllib.parse.quote(str(value), safe="") for name, value in one.items()}
        case.path_parameters = seeded(case.path_parameters, kinds, wire, makes_new)
    if case.query:
        case.query = seeded(case.query, kinds, one, makes_new)
    if isinstance(case.body, dict):
        case.body = seeded(case.body, kinds, one, makes_new)


def which_set(method, path):
    """The sets that a question of this kind may be about."""
    if method == "DELETE" and path.count("{") < 2:
        return "doomed"
    changes = method in ("DELETE", "PATCH", "PUT") or path.endswith("/secret")
    return "changing" if changes else "living"


def protect(case, method, path):
    """Turns changes of what the tester needs into changes of something else."""
    replacement = which_set(method, path)
    if replacement == "living":
        return
    needed = {"application_id": {SEEDS["own_application"]}, "api_id": {SEEDS["management_api"]}}
    for one in SEEDS["living"] + (SEEDS["changing"] if replacement == "doomed" else []):
        for name, value in one.items():
            needed.setdefault(name, set()).add(str(value).lower())
    for values, encode in ((case.path_parameters, True), (case.query, False)):
        for name, value in (values or {}).items():
            kind = KINDS.get(name)
            text = urllib.parse.unquote(str(value)) if encode else str(value)
            if kind and text.lower() in needed[kind]:
                other = SEEDS[replacement][0][kind]
                values[name] = urllib.parse.quote(other, safe="") if encode else other


@schemathesis.hook
def before_call(context, case, kwargs):
    path, method = case.operation.path, case.method.upper()
    question = repr((case.path_parameters, case.query, case.body))
    draw = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big")
    # A quarter stays as it was drawn.
    if case.meta is not None and case.meta.generation.mode.is_positive and draw % 4:
        improve(case, method, path, draw // 4)
    protect(case, method, path)
    key = (case.headers or {}).get("Idempotency-Key")
    if draw % 16 and isinstance(key, str) and re.fullmatch("[!-~]{1,255}", key):
        # The same key for the same question, lest every question but the first be a 422.
        text = repr((key, case.path_parameters, case.query, case.body))
        case.headers["Idempotency-Key"] = hashlib.sha256(text.encode()).hexdigest()


REACHED = set()


@schemathesis.hook
def after_call(context, case, response):
    if 200 <= response.status_code < 300:
        REACHED.add(f"{case.method.upper()} {case.operation.path}")


@atexit.register
def tell_reached():
    with open(os.environ["KEYWARD_FUZZ_REACHED"], "w", encoding="utf-8") as file:
        file.write("\n".join(sorted(REACHED)))


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
        return code_of(response) not in STATE
    if isinstance(failure, AcceptedNegativeData):
        return not is_absent_in_query(case)
    return True


@schemathesis.check
def only_documented_headers(ctx, response, case):
    """Every header that is sent stands in the document."""
    definition = case.operation.responses.find_by_status_code(response.status_code)
    if definition is None:
        return
    documented = {name.lower() for name, _ in definition.headers.items()}
    unknown = {name.lower() for name in response.headers} - documented - COMMON
    assert not unknown, f"headers that the document does not name: {', '.join(sorted(unknown))}"
