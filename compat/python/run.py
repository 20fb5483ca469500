"""Kinde's published Python client against a running Keyward, unmodified.

What it is for: promise 10 of the design ("Kinde's clients work unchanged"). This client checks
every field of an answer against its own strict types, so each call here is also a check of the
answer's shape. What the server answers beyond that is left to the server's own tests.

Reads KINDE_DOMAIN, KINDE_MANAGEMENT_CLIENT_ID and KINDE_MANAGEMENT_CLIENT_SECRET, and trusts the
certificate through SSL_CERT_FILE (urllib3) and REQUESTS_CA_BUNDLE (requests). The last line of
standard output is `N M`: how many checks passed and how many failed.
"""

import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

from kinde_sdk.management import ManagementClient
from kinde_sdk.management.exceptions import (
    BadRequestException,
    ForbiddenException,
    NotFoundException,
    UnauthorizedException,
)
from kinde_sdk.management.management_token_manager import ManagementTokenManager
from kinde_sdk.management.models.create_api_key_request import CreateApiKeyRequest

# The client wants the bare domain and puts https:// in front itself.
DOMAIN = os.environ["KINDE_DOMAIN"].removeprefix("https://")
CLIENT_ID = os.environ["KINDE_MANAGEMENT_CLIENT_ID"]
CLIENT_SECRET = os.environ["KINDE_MANAGEMENT_CLIENT_SECRET"]
# Ids and names are unique per run, so that the same server can be used again.
RUN = f"py{int(time.time() * 1000):x}"
NOBODY = "0" * 32

CHECKS = []


class Made:
    """What the checks hand to each other."""


def check(name):
    """Registers a function as the check of one promise."""

    def register(function):
        CHECKS.append((name, function))
        return function

    return register


def equal(found, wanted, what=""):
    assert found == wanted, f"{what} {found!r}, wanted {wanted!r}".strip()


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"answered, but {kind.__name__} was expected")


def is_recent(instant):
    """A time with a zone, at most an hour from this machine's clock."""
    return abs(datetime.now(timezone.utc) - instant) < timedelta(hours=1)


def all_pages(fetch, items_of):
    """The pages of a list joined by next_token; fails on a token that repeats."""
    pages, seen, token = [], set(), None
    while True:
        page = fetch(token)
        pages.append(items_of(page))
        token = page.next_token
        if not token:
            return pages
        assert token not in seen, "a page token came twice"
        seen.add(token)


client = ManagementClient(DOMAIN, CLIENT_ID, CLIENT_SECRET)
keys = client.api_keys_api
apis = client.apis_api
applications = client.applications_api
users = client.users_api
organizations = client.organizations_api


def verify(secret):
    return keys.verify_api_key({"api_key": secret})


@check("twenty clients at once each get a token and an answer")
def _():
    def first_call(_):
        # The client shares one token per domain and application; without this it would ask once.
        ManagementTokenManager.reset_instances()
        return ManagementClient(DOMAIN, CLIENT_ID, CLIENT_SECRET).apis_api.get_apis()

    with ThreadPoolExecutor(max_workers=20) as pool:
        for answer in pool.map(first_call, range(20)):
            equal(answer.code, "OK")


@check("an API is added, listed and read")
def _():
    added = apis.add_apis({"name": f"Reports {RUN}", "audience": f"https://{RUN}.example/api"})
    Made.api = added.api.id
    listing = apis.get_apis(expand="scopes")
    equal(listing.next_token, None)
    listed = next(api for api in listing.apis if api.id == Made.api)
    equal(listed.is_management_api, False)
    equal(listed.scopes, [])
    equal(sum(api.is_management_api for api in listing.apis), 1)
    equal(apis.get_api(Made.api).api.audience, f"https://{RUN}.example/api")


@check("scopes are added, listed, described and deleted")
def _():
    def add(key):
        return apis.add_api_scope(Made.api, {"key": key, "description": f"May {key}"}).scope.id

    Made.read_scope, Made.write_scope = add("read:reports"), add("write:reports")
    gone = add("gone:reports")
    apis.update_api_scope(Made.api, Made.read_scope, {"description": "Read every report"})
    scope = apis.get_api_scope(Made.api, Made.read_scope).scope
    equal((scope.key, scope.description), ("read:reports", "Read every report"))
    apis.delete_api_scope(Made.api, gone)
    scopes = apis.get_api_scopes(Made.api).scopes
    equal(sorted(scope.key for scope in scopes), ["read:reports", "write:reports"])
    raises(NotFoundException, lambda: apis.get_api_scope(Made.api, gone))


@check("an application is created, connected to an API, given a scope, deleted")
def _():
    created = applications.create_application({"name": f"Job {RUN}", "type": "m2m"}).application
    assert created.client_secret.isalnum() and len(created.client_secret) == 48
    connected = apis.update_api_applications(Made.api, {"applications": [{"id": created.id}]})
    equal(connected.applications_connected, [created.id])
    apis.add_api_application_scope(Made.api, created.id, Made.read_scope)
    listed = next(a for a in apis.get_api(Made.api).api.applications if a.id == created.id)
    equal((listed.type, listed.is_active), ("Machine to machine (M2M)", True))
    apis.delete_api_application_scope(Made.api, created.id, Made.read_scope)
    drop = {"applications": [{"id": created.id, "operation": "delete"}]}
    disconnected = apis.update_api_applications(Made.api, drop)
    equal(disconnected.applications_disconnected, [created.id])
    applications.update_application(created.id, update_application_request={"name": "Night job"})
    read = applications.get_application(created.id).application
    equal((read.name, read.type, read.client_id), ("Night job", "m2m", created.client_id))
    pages = all_pages(
        lambda token: applications.get_applications(page_size=1, next_token=token),
        lambda page: page.applications,
    )
    assert any(item.id == created.id for page in pages for item in page)
    applications.delete_application(created.id)
    raises(NotFoundException, lambda: applications.get_application(created.id))


@check("a new application's own credentials open what it was granted and nothing else")
def _():
    created = applications.create_application({"name": f"Own {RUN}", "type": "m2m"}).application
    listing = apis.get_apis(expand="scopes")
    management = next(api for api in listing.apis if api.is_management_api)
    granted = next(scope for scope in management.scopes if scope.key == "read:apis")
    apis.update_api_applications(management.id, {"applications": [{"id": created.id}]})
    apis.add_api_application_scope(management.id, created.id, granted.id)
    own = ManagementClient(DOMAIN, created.client_id, created.client_secret)
    equal(own.apis_api.get_apis().code, "OK")
    error = raises(ForbiddenException, lambda: own.api_keys_api.get_api_keys())
    assert error.data.errors[0].code
    applications.delete_application(created.id)
    raises(UnauthorizedException, lambda: own.apis_api.get_apis())


@check("a user is created, found, read, changed and suspended")
def _():
    email = f"ada.{RUN}@example.com"
    created = users.create_user(
        {
            "profile": {"given_name": "Ada", "family_name": "Lovelace"},
            "provided_id": f"provided-{RUN}",
            "identities": [{"type": "email", "details": {"email": email}}],
        }
    )
    Made.user = created.id
    equal((created.created, created.identities[0].result.created), (True, True))
    found = users.get_users(email=email).users
    equal([user.id for user in found], [Made.user])
    equal((found[0].email, found[0].first_name), (email, "Ada"))
    changed = users.update_user(Made.user, {"family_name": "King", "is_suspended": True})
    equal((changed.family_name, changed.is_suspended), ("King", True))
    users.update_user(Made.user, {"is_suspended": False})
    user = users.get_user_data(Made.user)
    equal((user.preferred_email, user.last_name), (email, "King"))
    equal((user.provided_id, user.is_suspended), (f"provided-{RUN}", False))
    assert is_recent(datetime.fromisoformat(user.created_on.replace("Z", "+00:00")))


@check("users are paged with next_token, none twice and none missing")
def _():
    Made.paged = [
        users.create_user({"profile": {"given_name": f"Page {number}"}}).id for number in range(5)
    ]
    pages = all_pages(
        lambda token: users.get_users(page_size=2, next_token=token),
        lambda page: page.users,
    )
    assert len(pages) > 2, f"{len(pages)} pages"
    assert all(len(page) == 2 for page in pages[:-1])
    listed = [user.id for page in pages for user in page]
    equal(len(set(listed)), len(listed))
    assert set(Made.paged) <= set(listed)


@check("an organization is created, listed, read and changed")
def _():
    wish = {"name": f"Acme {RUN}", "external_id": f"ext-{RUN}", "handle": f"acme-{RUN}"}
    Made.org = organizations.create_organization(wish).organization.code
    organizations.update_organization(
        Made.org, update_organization_request={"name": f"Acme Works {RUN}"}
    )
    read = organizations.get_organization(code=Made.org)
    equal((read.code, read.name), (Made.org, f"Acme Works {RUN}"))
    equal((read.external_id, read.handle), (f"ext-{RUN}", f"acme-{RUN}"))
    for number in range(5):
        organizations.create_organization({"name": f"Acme {number} {RUN}"})
    pages = all_pages(
        lambda token: organizations.get_organizations(page_size=2, next_token=token),
        lambda page: page.organizations,
    )
    assert len(pages) > 2, f"{len(pages)} pages"
    codes = [item.code for page in pages for item in page]
    equal(len(set(codes)), len(codes))
    assert Made.org in codes


@check("members are added, listed and removed, whatever their ids look like")
def _():
    # The client escapes everything in a path, also the slash.
    odd = f"auth0|a/b+{RUN}@example.com"
    keys.create_api_key({"name": "Odd", "type": "user", "api_id": Made.api, "user_id": odd})
    added = organizations.add_organization_users(
        Made.org, add_organization_users_request={"users": [{"id": Made.user}, {"id": odd}]}
    )
    equal(sorted(added.users_added), sorted([Made.user, odd]))
    members = organizations.get_organization_users(Made.org).organization_users
    ada = next(member for member in members if member.id == Made.user)
    equal((ada.full_name, ada.email), ("Ada King", f"ada.{RUN}@example.com"))
    equal((ada.is_suspended, ada.roles), (False, []))
    organizations.remove_organization_user(Made.org, odd)
    drop = {"users": [{"id": Made.user, "operation": "delete"}]}
    changed = organizations.update_organization_users(
        Made.org, update_organization_users_request=drop
    )
    equal(changed.users_removed, [Made.user])
    equal(organizations.get_organization_users(Made.org).organization_users, [])


@check("a user's key, asked for with explicit nulls, verifies as that user's")
def _():
    # from_dict writes every field that was left out as an explicit null.
    wish = CreateApiKeyRequest.from_dict(
        {"name": "Laptop", "type": "user", "api_id": Made.api, "user_id": Made.user}
    )
    assert "org_code" in wish.to_dict() and wish.to_dict()["scope_ids"] is None
    unscoped = keys.create_api_key(wish)
    equal(verify(unscoped.api_key.key).scopes, [])
    created = keys.create_api_key(
        {
            "name": "Laptop",
            "type": "user",
            "api_id": Made.api,
            "scope_ids": [Made.read_scope, "write:reports"],
            "user_id": Made.user,
        }
    )
    equal(created.code, "API_KEY_CREATED")
    Made.key_id, Made.key = created.api_key.id, created.api_key.key
    verdict = verify(Made.key)
    equal((verdict.code, verdict.is_valid), ("API_KEY_VERIFIED", True))
    equal((verdict.key_id, verdict.status), (Made.key_id, "active"))
    equal(sorted(verdict.scopes), ["read:reports", "write:reports"])
    equal((verdict.user_id, verdict.org_code), (Made.user, None))
    equal(verdict.verification_count, 1)
    assert is_recent(verdict.last_verified_on)


@check("the count and the time of the last verification are read back exactly")
def _():
    verdict = verify(Made.key)
    key = keys.get_api_key(Made.key_id).api_key
    equal((verdict.verification_count, key.verification_count), (2, 2))
    equal(key.last_verified_on, verdict.last_verified_on)
    equal((key.name, key.type, key.status), ("Laptop", "user", "active"))
    equal((key.key_prefix, key.key_suffix), (Made.key[:6], Made.key[-4:]))
    equal((key.user_id, key.organization_id), (Made.user, None))
    equal(key.api_ids, [Made.api])
    assert is_recent(key.created_on)


@check("an organization's key answers with its org_code and no user_id")
def _():
    created = keys.create_api_key(
        {
            "name": "Warehouse",
            "type": "organization",
            "api_id": Made.api,
            "scope_ids": [Made.write_scope],
            "org_code": Made.org,
        }
    )
    Made.org_key_id = created.api_key.id
    verdict = verify(created.api_key.key)
    equal((verdict.is_valid, verdict.org_code, verdict.user_id), (True, Made.org, None))
    listed = keys.get_api_keys(key_type="organization", org_code=Made.org)
    equal([key.id for key in listed.api_keys], [Made.org_key_id])


@check("keys are paged with starting_after, newest first, none twice")
def _():
    owner, created = Made.paged[0], []
    for number in range(5):
        wish = {"name": f"Page {number}", "type": "user", "api_id": Made.api, "user_id": owner}
        created.insert(0, keys.create_api_key(wish).api_key.id)
    listed, pages, more = [], 0, True
    while more:
        after = listed[-1] if listed else None
        page = keys.get_api_keys(user_id=owner, page_size=2, starting_after=after)
        pages += 1
        assert pages <= 3, "five keys fit on three pages of two"
        listed += [key.id for key in page.api_keys]
        more = page.has_more
    equal(pages, 3)
    equal(listed, created)


@check("a rotated key keeps its id; the old secret is refused, the new one good")
def _():
    old = Made.key
    rotated = keys.rotate_api_key(Made.key_id)
    equal((rotated.code, rotated.api_key.id), ("API_KEY_ROTATED", Made.key_id))
    Made.key = rotated.api_key.key
    refused = verify(old)
    equal((refused.code, refused.is_valid), ("API_KEY_ROTATED", False))
    verdict = verify(Made.key)
    equal((verdict.is_valid, verdict.verification_count), (True, 3))


@check("a suspended owner's key is refused at once and good again afterwards")
def _():
    users.update_user(Made.user, {"is_suspended": True})
    refused = verify(Made.key)
    equal((refused.code, refused.is_valid), ("API_KEY_OWNER_SUSPENDED", False))
    users.update_user(Made.user, {"is_suspended": False})
    equal(verify(Made.key).is_valid, True)


@check("a deleted key is refused at once and stays listed as revoked")
def _():
    equal(keys.delete_api_key(Made.key_id).code, "API_KEY_DELETED")
    refused = verify(Made.key)
    equal((refused.code, refused.is_valid), ("API_KEY_REVOKED", False))
    equal((refused.key_id, refused.status), (Made.key_id, "revoked"))
    listed = keys.get_api_keys(status="revoked", user_id=Made.user)
    equal([key.id for key in listed.api_keys], [Made.key_id])
    equal(keys.delete_api_key(Made.key_id).code, "API_KEY_DELETED")
    error = raises(BadRequestException, lambda: keys.rotate_api_key(Made.key_id))
    assert error.data.errors[0].code


@check("a guessed key learns nothing")
def _():
    verdict = verify("k_live_not_a_key")
    equal((verdict.code, verdict.is_valid), ("API_KEY_INVALID", False))
    equal((verdict.key_id, verdict.status, verdict.last_verified_on), (None, None, None))
    equal((verdict.org_code, verdict.user_id), (None, None))
    equal((verdict.scopes, verdict.verification_count), ([], 0))


@check("a missing key is a 404 that the client decodes")
def _():
    for key_id in (f"api_key_{NOBODY}", "no-such-key", "a/b"):
        error = raises(NotFoundException, lambda: keys.get_api_key(key_id))
        assert error.data.errors.code and error.data.errors.message, error.body
    for call in (keys.rotate_api_key, keys.delete_api_key):
        assert raises(NotFoundException, lambda: call(f"api_key_{NOBODY}")).data.errors.code
    error = raises(NotFoundException, lambda: organizations.delete_organization("org_nowhere"))
    assert error.data.errors.code


@check("an owner that only the query names and that does not exist is a 400")
def _():
    for call in (
        lambda: users.get_user_data("nobody"),
        lambda: users.update_user("nobody", {"given_name": "Ada"}),
        lambda: users.delete_user("nobody"),
        lambda: organizations.get_organization(code="org_nowhere"),
    ):
        error = raises(BadRequestException, call)
        assert error.data.errors[0].code, error.body


@check("a bad request is a 400 that the client decodes")
def _():
    wish = {"name": "Lost", "type": "user", "api_id": NOBODY, "user_id": Made.user}
    error = raises(BadRequestException, lambda: keys.create_api_key(wish))
    assert error.data.errors[0].code and error.data.errors[0].message


@check("deleting users, organizations and APIs ends their keys")
def _():
    wish = {"name": "Last", "type": "user", "api_id": Made.api, "user_id": Made.user}
    user_key = keys.create_api_key(wish).api_key.key
    wish = {"name": "House", "type": "environment", "api_id": Made.api}
    house_key = keys.create_api_key(wish).api_key.key
    equal((verify(user_key).is_valid, verify(house_key).is_valid), (True, True))
    users.delete_user(Made.user, is_delete_profile=True)
    equal(verify(user_key).is_valid, False)
    organizations.delete_organization(Made.org)
    equal(keys.get_api_key(Made.org_key_id).api_key.status, "revoked")
    equal(apis.delete_api(Made.api).code, "API_DELETED")
    equal(verify(house_key).is_valid, False)
    raises(NotFoundException, lambda: apis.get_api(Made.api))


@check("a wrong secret and a wrong token end in errors that say so")
def _():
    wrong = ManagementClient(DOMAIN, "no-such-application", "x" * 48)
    error = raises(Exception, lambda: wrong.apis_api.get_apis())
    assert "401" in str(error) or "400" in str(error), error
    wrong.token_manager.set_tokens({"access_token": "not.a.token", "expires_in": 3600})
    raises(UnauthorizedException, lambda: wrong.apis_api.get_apis())
    guess = {"api_key": "x"}
    error = raises(UnauthorizedException, lambda: wrong.api_keys_api.verify_api_key(guess))
    assert error.data.errors[0].code


def main():
    failed = 0
    for name, function in CHECKS:
        try:
            function()
            print(f"ok      {name}", flush=True)
        except Exception:
            failed += 1
            detail = traceback.format_exc().strip().replace("\n", "\n        ")
            print(f"NOT OK  {name}\n        {detail}", flush=True)
    print(f"{len(CHECKS) - failed} {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
