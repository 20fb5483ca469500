// Kinde's published JavaScript clients against a running Keyward, unmodified.
//
// What it is for: promise 10 of the design ("Kinde's clients work unchanged"). Each check says
// one thing an operator's program relies on. What the server answers beyond what these clients
// read is left to the server's own tests.
//
// Reads KINDE_DOMAIN, KINDE_MANAGEMENT_CLIENT_ID and KINDE_MANAGEMENT_CLIENT_SECRET (the names the
// client itself reads) and trusts the certificate through NODE_EXTRA_CA_CERTS. The last line of
// standard output is `N M`: how many checks passed and how many failed.

import assert from "node:assert/strict";
import {
  ApiError,
  ApiKeys,
  Apis,
  Applications,
  Organizations,
  Users,
  getToken,
  init,
  jwtDecode,
  setToken,
  validateToken,
} from "@kinde/management-api-js";
import {
  Configuration,
  GrantType,
  OrganizationsApi,
  UsersApi,
  createKindeServerClient,
} from "@kinde-oss/kinde-typescript-sdk";

const base = process.env.KINDE_DOMAIN;
const clientId = process.env.KINDE_MANAGEMENT_CLIENT_ID;
const clientSecret = process.env.KINDE_MANAGEMENT_CLIENT_SECRET;
// Ids and names are unique per run, so that the same server can be used again.
const run = `js${Date.now().toString(36)}`;

let passed = 0;
let failed = 0;

/** Runs one check; a failure is told and the rest goes on. */
async function check(name, body) {
  try {
    await body();
    passed += 1;
    console.log(`ok      ${name}`);
  } catch (error) {
    failed += 1;
    const told = error instanceof ApiError ? ` ${error.status} ${JSON.stringify(error.body)}` : "";
    console.log(`NOT OK  ${name}\n        ${error?.stack ?? error}${told}`);
  }
}

/** The ApiError that a call must end in, with this status. */
async function refusal(status, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof ApiError, `an ApiError, not ${error}`);
    assert.equal(error.status, status, JSON.stringify(error.body));
    return error;
  }
  throw new assert.AssertionError({ message: `answered, but ${status} was expected` });
}

/** Every item of a list whose pages are joined by `next_token`; fails on a page that repeats. */
async function allPages(fetchPage, itemsOf) {
  const pages = [];
  const seenTokens = new Set();
  let token;
  do {
    const page = await fetchPage(token);
    pages.push(itemsOf(page));
    token = page.next_token;
    assert.ok(token === null || token === undefined || typeof token === "string", "next_token");
    assert.ok(!seenTokens.has(token), "a page token came twice");
    seenTokens.add(token);
  } while (token);
  return pages;
}

const isTime = (text) =>
  typeof text === "string" && text.endsWith("Z") && !Number.isNaN(Date.parse(text));
const verify = (api_key) => ApiKeys.verifyApiKey({ requestBody: { api_key } });

// What the checks hand to each other.
const made = {};

init();

await check("twenty first calls at once all get a token and an answer", async () => {
  const answers = await Promise.all(Array.from({ length: 20 }, () => Apis.getApis({})));
  for (const answer of answers) assert.equal(answer.code, "OK");
});

await check("the token names its audience and stands up to the client's own verifier", async () => {
  const token = await getToken();
  const claims = jwtDecode(token);
  assert.equal(claims.iss, base);
  assert.ok(claims.aud.includes(`${base}/api`));
  assert.equal(claims.azp, clientId);
  assert.deepEqual(claims.gty, ["client_credentials"]);
  assert.equal(await validateToken(token, `${base}/api`), true);
});

await check("the client's verifier rejects the token with another signature", async () => {
  const [header, claims, signature] = (await getToken()).split(".");
  const other = signature.startsWith("A") ? "B" : "A";
  const forged = `${header}.${claims}.${other}${signature.slice(1)}`;
  assert.equal(await validateToken(forged, `${base}/api`), false);
});

await check("an API is added, listed and read", async () => {
  const added = await Apis.addApis({
    requestBody: { name: `Reports ${run}`, audience: `https://${run}.example/api` },
  });
  made.apiId = added.api.id;
  assert.match(made.apiId, /^[0-9a-f]{32}$/);
  const { apis, next_token } = await Apis.getApis({ expand: "scopes" });
  assert.equal(next_token, null);
  const listed = apis.find((api) => api.id === made.apiId);
  assert.equal(listed.audience, `https://${run}.example/api`);
  assert.equal(listed.is_management_api, false);
  assert.deepEqual(listed.scopes, []);
  const management = apis.filter((api) => api.is_management_api);
  assert.equal(management.length, 1);
  assert.equal(management[0].audience, `${base}/api`);
  const { api } = await Apis.getApi({ apiId: made.apiId });
  assert.equal(api.name, `Reports ${run}`);
});

await check("scopes are added, listed, described and deleted", async () => {
  const add = async (key) => {
    const requestBody = { key, description: `May ${key}` };
    return (await Apis.addApiScope({ apiId: made.apiId, requestBody })).scope.id;
  };
  made.readScope = await add("read:reports");
  made.writeScope = await add("write:reports");
  const gone = await add("gone:reports");
  assert.match(made.readScope, /^api_scope_[0-9a-f]{32}$/);
  await Apis.updateApiScope({
    apiId: made.apiId,
    scopeId: made.readScope,
    requestBody: { description: "Read every report" },
  });
  const { scope } = await Apis.getApiScope({ apiId: made.apiId, scopeId: made.readScope });
  assert.deepEqual(
    [scope.id, scope.key, scope.description],
    [made.readScope, "read:reports", "Read every report"],
  );
  await Apis.deleteApiScope({ apiId: made.apiId, scopeId: gone });
  const { scopes } = await Apis.getApiScopes({ apiId: made.apiId });
  assert.deepEqual(scopes.map((scope) => scope.key).sort(), ["read:reports", "write:reports"]);
  await refusal(404, () => Apis.getApiScope({ apiId: made.apiId, scopeId: gone }));
});

await check("an application is created, connected to an API, given a scope, deleted", async () => {
  const { application } = await Applications.createApplication({
    requestBody: { name: `Job ${run}`, type: "m2m", org_code: null },
  });
  assert.match(application.client_secret, /^[a-zA-Z0-9]{40,60}$/);
  const ids = { apiId: made.apiId, applicationId: application.id };
  const connected = await Apis.updateApiApplications({
    apiId: made.apiId,
    requestBody: { applications: [{ id: application.id }] },
  });
  assert.deepEqual(connected.applications_connected, [application.id]);
  await Apis.addApiApplicationScope({ ...ids, scopeId: made.readScope });
  const { api } = await Apis.getApi({ apiId: made.apiId });
  const listed = api.applications.find((item) => item.id === application.id);
  assert.equal(listed.type, "Machine to machine (M2M)");
  assert.equal(listed.is_active, true);
  await Apis.deleteApiApplicationScope({ ...ids, scopeId: made.readScope });
  const disconnected = await Apis.updateApiApplications({
    apiId: made.apiId,
    requestBody: { applications: [{ id: application.id, operation: "delete" }] },
  });
  assert.deepEqual(disconnected.applications_disconnected, [application.id]);
  await Applications.updateApplication({
    applicationId: application.id,
    requestBody: { name: `Night job ${run}` },
  });
  const read = await Applications.getApplication({ applicationId: application.id });
  assert.equal(read.application.name, `Night job ${run}`);
  assert.equal(read.application.type, "m2m");
  const pages = await allPages(
    (nextToken) => Applications.getApplications({ pageSize: 1, nextToken }),
    (page) => page.applications,
  );
  assert.ok(pages.flat().some((item) => item.id === application.id));
  await Applications.deleteApplication({ applicationId: application.id });
  await refusal(404, () => Applications.getApplication({ applicationId: application.id }));
});

await check("a user is created, found, read, changed and suspended", async () => {
  const created = await Users.createUser({
    requestBody: {
      profile: { given_name: "Ada", family_name: "Lovelace" },
      provided_id: `provided-${run}`,
      identities: [{ type: "email", details: { email: `ada.${run}@example.com` } }],
    },
  });
  made.userId = created.id;
  assert.match(made.userId, /^kp_[0-9a-f]{32}$/);
  assert.equal(created.created, true);
  assert.equal(created.identities[0].type, "email");
  assert.equal(created.identities[0].result.created, true);
  const found = await Users.getUsers({ email: `ada.${run}@example.com` });
  assert.deepEqual(found.users.map((user) => user.id), [made.userId]);
  const changed = await Users.updateUser({
    id: made.userId,
    requestBody: { family_name: "King", is_suspended: true },
  });
  assert.equal(changed.family_name, "King");
  assert.equal(changed.is_suspended, true);
  await Users.updateUser({ id: made.userId, requestBody: { is_suspended: false } });
  const user = await Users.getUserData({ id: made.userId });
  assert.equal(user.provided_id, `provided-${run}`);
  assert.equal(user.preferred_email, `ada.${run}@example.com`);
  assert.equal(user.first_name, "Ada");
  assert.equal(user.last_name, "King");
  assert.equal(user.is_suspended, false);
  assert.ok(isTime(user.created_on));
});

await check("users are paged with next_token, none twice and none missing", async () => {
  const ids = new Set();
  for (let number = 0; number < 5; number += 1) {
    const requestBody = { profile: { given_name: `Page ${number}` } };
    ids.add((await Users.createUser({ requestBody })).id);
  }
  made.pagedUsers = [...ids];
  const pages = await allPages(
    (nextToken) => Users.getUsers({ pageSize: 2, nextToken }),
    (page) => page.users,
  );
  assert.ok(pages.length > 2, `${pages.length} pages`);
  for (const page of pages.slice(0, -1)) assert.equal(page.length, 2);
  const listed = pages.flat().map((user) => user.id);
  assert.equal(new Set(listed).size, listed.length);
  for (const id of ids) assert.ok(listed.includes(id));
});

await check("parameters that are null count as absent", async () => {
  const users = await Users.getUsers({ pageSize: null, nextToken: null, email: null });
  assert.ok(users.users.length > 0);
  const keys = await ApiKeys.getApiKeys({
    pageSize: null,
    startingAfter: null,
    keyType: null,
    status: null,
    userId: null,
    orgCode: null,
  });
  assert.ok(Array.isArray(keys.api_keys));
});

await check("an organization is created, listed, read and changed", async () => {
  const created = await Organizations.createOrganization({
    requestBody: { name: `Acme ${run}`, external_id: `ext-${run}`, handle: `acme-${run}` },
  });
  made.orgCode = created.organization.code;
  assert.match(made.orgCode, /^org_[0-9a-f]{32}$/);
  await Organizations.updateOrganization({
    orgCode: made.orgCode,
    requestBody: { name: `Acme Works ${run}` },
  });
  const organization = await Organizations.getOrganization({ code: made.orgCode });
  assert.equal(organization.code, made.orgCode);
  assert.equal(organization.name, `Acme Works ${run}`);
  assert.equal(organization.external_id, `ext-${run}`);
  assert.equal(organization.handle, `acme-${run}`);
  for (const number of [1, 2, 3, 4, 5]) {
    await Organizations.createOrganization({ requestBody: { name: `Acme ${number} ${run}` } });
  }
  const pages = await allPages(
    (nextToken) => Organizations.getOrganizations({ pageSize: 2, nextToken }),
    (page) => page.organizations,
  );
  assert.ok(pages.length > 2, `${pages.length} pages`);
  const codes = pages.flat().map((item) => item.code);
  assert.equal(new Set(codes).size, codes.length);
  assert.ok(codes.includes(made.orgCode));
});

await check("members are added, listed and removed, whatever their ids look like", async () => {
  // `|` is escaped by the client, `@` and `+` are not: both must arrive as they are.
  made.oddUser = `auth0|ada+${run}@example.com`;
  await ApiKeys.createApiKey({
    requestBody: { name: "Odd owner", type: "user", api_id: made.apiId, user_id: made.oddUser },
  });
  const added = await Organizations.addOrganizationUsers({
    orgCode: made.orgCode,
    requestBody: { users: [{ id: made.userId }, { id: made.oddUser }] },
  });
  assert.deepEqual([...added.users_added].sort(), [made.userId, made.oddUser].sort());
  const before = await Organizations.getOrganizationUsers({ orgCode: made.orgCode });
  const ada = before.organization_users.find((member) => member.id === made.userId);
  assert.equal(ada.email, `ada.${run}@example.com`);
  assert.equal(ada.full_name, "Ada King");
  assert.ok(isTime(ada.joined_on));
  assert.deepEqual(ada.roles, []);
  await Organizations.removeOrganizationUser({ orgCode: made.orgCode, userId: made.oddUser });
  const changed = await Organizations.updateOrganizationUsers({
    orgCode: made.orgCode,
    requestBody: { users: [{ id: made.userId, operation: "delete" }] },
  });
  assert.deepEqual(changed.users_removed, [made.userId]);
  const after = await Organizations.getOrganizationUsers({ orgCode: made.orgCode });
  assert.deepEqual(after.organization_users, []);
});

await check("a user's key is created by scope id and verifies as that user's", async () => {
  const created = await ApiKeys.createApiKey({
    requestBody: {
      name: "Laptop",
      type: "user",
      api_id: made.apiId,
      scope_ids: [made.readScope],
      user_id: made.userId,
      org_code: null,
    },
  });
  assert.equal(created.code, "API_KEY_CREATED");
  made.keyId = created.api_key.id;
  made.key = created.api_key.key;
  assert.match(made.keyId, /^api_key_[0-9a-f]{32}$/);
  const verdict = await verify(made.key);
  assert.equal(verdict.code, "API_KEY_VERIFIED");
  assert.equal(verdict.is_valid, true);
  assert.equal(verdict.key_id, made.keyId);
  assert.equal(verdict.status, "active");
  assert.deepEqual(verdict.scopes, ["read:reports"]);
  assert.equal(verdict.user_id, made.userId);
  assert.equal(verdict.org_code, null);
  assert.equal(verdict.verification_count, 1);
  assert.ok(isTime(verdict.last_verified_on));
});

await check("the count and the time of the last verification are read back exactly", async () => {
  const verdict = await verify(made.key);
  assert.equal(verdict.verification_count, 2);
  const { code, api_key } = await ApiKeys.getApiKey({ keyId: made.keyId });
  assert.equal(code, "OK");
  assert.equal(api_key.verification_count, 2);
  assert.equal(api_key.last_verified_on, verdict.last_verified_on);
  assert.equal(api_key.name, "Laptop");
  assert.equal(api_key.type, "user");
  assert.equal(api_key.status, "active");
  assert.equal(api_key.key_prefix, made.key.slice(0, 6));
  assert.equal(api_key.key_suffix, made.key.slice(-4));
  assert.deepEqual(api_key.api_ids, [made.apiId]);
  assert.deepEqual(api_key.scopes, ["read:reports"]);
  assert.equal(api_key.user_id, made.userId);
  assert.equal(api_key.organization_id, null);
  assert.equal(api_key.last_verified_ip, null);
  assert.ok(isTime(api_key.created_on));
});

await check("an organization's key answers with its org_code and no user_id", async () => {
  const created = await ApiKeys.createApiKey({
    requestBody: {
      name: "Warehouse",
      type: "organization",
      api_id: made.apiId,
      scope_ids: ["write:reports"],
      org_code: made.orgCode,
    },
  });
  made.orgKeyId = created.api_key.id;
  const verdict = await verify(created.api_key.key);
  assert.equal(verdict.is_valid, true);
  assert.equal(verdict.org_code, made.orgCode);
  assert.equal(verdict.user_id, null);
  assert.deepEqual(verdict.scopes, ["write:reports"]);
  const listed = await ApiKeys.getApiKeys({ keyType: "organization", orgCode: made.orgCode });
  assert.deepEqual(listed.api_keys.map((key) => key.id), [made.orgKeyId]);
});

await check("an environment's key belongs to nobody and verifies", async () => {
  const created = await ApiKeys.createApiKey({
    requestBody: { name: "House", type: "environment", api_id: made.apiId },
  });
  const verdict = await verify(created.api_key.key);
  assert.equal(verdict.is_valid, true);
  assert.equal(verdict.user_id, null);
  assert.equal(verdict.org_code, null);
});

await check("keys are paged with starting_after, newest first, none twice", async () => {
  const [owner] = made.pagedUsers;
  const created = [];
  for (let number = 0; number < 5; number += 1) {
    const answer = await ApiKeys.createApiKey({
      requestBody: { name: `Page ${number}`, type: "user", api_id: made.apiId, user_id: owner },
    });
    created.unshift(answer.api_key.id);
  }
  const listed = [];
  let pages = 0;
  let more = true;
  while (more) {
    const page = await ApiKeys.getApiKeys({
      userId: owner,
      pageSize: 2,
      startingAfter: listed.at(-1),
    });
    pages += 1;
    assert.ok(pages <= 3, "five keys fit on three pages of two");
    assert.equal(typeof page.has_more, "boolean");
    listed.push(...page.api_keys.map((key) => key.id));
    more = page.has_more;
  }
  assert.equal(pages, 3);
  assert.deepEqual(listed, created);
});

await check("a rotated key keeps its id; the old secret is refused, the new one good", async () => {
  const old = made.key;
  const rotated = await ApiKeys.rotateApiKey({ keyId: made.keyId });
  assert.equal(rotated.code, "API_KEY_ROTATED");
  assert.equal(rotated.api_key.id, made.keyId);
  made.key = rotated.api_key.key;
  assert.notEqual(made.key, old);
  const refused = await verify(old);
  assert.equal(refused.is_valid, false);
  assert.equal(refused.code, "API_KEY_ROTATED");
  const verdict = await verify(made.key);
  assert.equal(verdict.is_valid, true);
  assert.equal(verdict.verification_count, 3);
});

await check("a suspended owner's key is refused at once and good again afterwards", async () => {
  await Users.updateUser({ id: made.userId, requestBody: { is_suspended: true } });
  const refused = await verify(made.key);
  assert.equal(refused.is_valid, false);
  assert.equal(refused.code, "API_KEY_OWNER_SUSPENDED");
  assert.equal(refused.status, "active");
  await Users.updateUser({ id: made.userId, requestBody: { is_suspended: false } });
  assert.equal((await verify(made.key)).is_valid, true);
});

await check("a deleted key is refused at once and stays listed as revoked", async () => {
  const deleted = await ApiKeys.deleteApiKey({ keyId: made.keyId });
  assert.equal(deleted.code, "API_KEY_DELETED");
  const refused = await verify(made.key);
  assert.equal(refused.is_valid, false);
  assert.equal(refused.code, "API_KEY_REVOKED");
  assert.equal(refused.key_id, made.keyId);
  assert.equal(refused.status, "revoked");
  const { api_keys } = await ApiKeys.getApiKeys({ status: "revoked", userId: made.userId });
  assert.deepEqual(api_keys.map((key) => key.id), [made.keyId]);
  assert.equal((await ApiKeys.deleteApiKey({ keyId: made.keyId })).code, "API_KEY_DELETED");
  await refusal(400, () => ApiKeys.rotateApiKey({ keyId: made.keyId }));
});

await check("a guessed key learns nothing", async () => {
  const verdict = await verify("k_live_not_a_key");
  const { message, ...rest } = verdict;
  assert.equal(typeof message, "string");
  for (const name of ["key_id", "status", "org_code", "user_id", "last_verified_on"]) {
    assert.equal(rest[name], null, name);
  }
  assert.equal(rest.code, "API_KEY_INVALID");
  assert.equal(rest.is_valid, false);
  assert.deepEqual(rest.scopes, []);
  assert.equal(rest.verification_count, 0);
});

await check("a missing key is a 404 whose errors is one object", async () => {
  for (const keyId of [`api_key_${"0".repeat(32)}`, "no-such-key"]) {
    const error = await refusal(404, () => ApiKeys.getApiKey({ keyId }));
    assert.equal(error.message, "The specified resource was not found");
    assert.equal(Array.isArray(error.body.errors), false);
    assert.equal(typeof error.body.errors.code, "string");
    assert.equal(typeof error.body.errors.message, "string");
  }
  await refusal(404, () => ApiKeys.rotateApiKey({ keyId: `api_key_${"0".repeat(32)}` }));
  await refusal(404, () => ApiKeys.deleteApiKey({ keyId: `api_key_${"0".repeat(32)}` }));
  await refusal(404, () => Organizations.deleteOrganization({ orgCode: "org_nowhere" }));
});

await check("an owner that only the query names and that does not exist is a 400", async () => {
  const nobody = `kp_${"0".repeat(32)}`;
  for (const call of [
    () => Users.getUserData({ id: nobody }),
    () => Users.updateUser({ id: nobody, requestBody: { given_name: "Ada" } }),
    () => Users.deleteUser({ id: nobody }),
    () => Organizations.getOrganization({ code: "org_nowhere" }),
  ]) {
    const error = await refusal(400, call);
    assert.ok(Array.isArray(error.body.errors));
  }
});

await check("a bad request is a 400 whose errors is a list", async () => {
  const requestBody = { name: "Lost", type: "user", api_id: "0".repeat(32), user_id: made.userId };
  const error = await refusal(400, () => ApiKeys.createApiKey({ requestBody }));
  assert.ok(Array.isArray(error.body.errors));
  assert.equal(typeof error.body.errors[0].code, "string");
  assert.equal(typeof error.body.errors[0].message, "string");
});

await check("deleting a user ends that user's keys", async () => {
  const requestBody = { name: "Last", type: "user", api_id: made.apiId, user_id: made.userId };
  const { api_key } = await ApiKeys.createApiKey({ requestBody });
  assert.equal((await verify(api_key.key)).is_valid, true);
  await Users.deleteUser({ id: made.userId, isDeleteProfile: true });
  assert.equal((await verify(api_key.key)).is_valid, false);
  await refusal(400, () => Users.getUserData({ id: made.userId }));
});

await check("deleting an organization and an API ends their keys", async () => {
  const requestBody = { name: "House", type: "environment", api_id: made.apiId };
  const { api_key } = await ApiKeys.createApiKey({ requestBody });
  await Organizations.deleteOrganization({ orgCode: made.orgCode });
  await refusal(400, () => Organizations.getOrganization({ code: made.orgCode }));
  const orgKey = await ApiKeys.getApiKey({ keyId: made.orgKeyId });
  assert.equal(orgKey.api_key.status, "revoked");
  assert.equal((await Apis.deleteApi({ apiId: made.apiId })).code, "API_DELETED");
  assert.equal((await verify(api_key.key)).is_valid, false);
  await refusal(404, () => Apis.getApi({ apiId: made.apiId }));
});

await check("the older TypeScript SDK gets a token, checks it and manages users", async () => {
  const session = new Map();
  const sessionManager = {
    persistent: true,
    getSessionItem: async (name) => session.get(name) ?? null,
    setSessionItem: async (name, value) => void session.set(name, value),
    removeSessionItem: async (name) => void session.delete(name),
    destroySession: async () => session.clear(),
  };
  const client = createKindeServerClient(GrantType.CLIENT_CREDENTIALS, {
    authDomain: base,
    clientId,
    clientSecret,
    logoutRedirectURL: base,
    // Twice on purpose: this SDK sends every entry as an `audience` of its own.
    audience: [`${base}/api`, `${base}/api`],
  });
  const accessToken = await client.getToken(sessionManager);
  assert.equal(await client.isAuthenticated(sessionManager), true);
  const headers = { Accept: "application/json" };
  const configuration = new Configuration({ basePath: base, accessToken, headers });
  const users = new UsersApi(configuration);
  // This SDK writes an explicit null into the query as the word `null`.
  const { users: first, nextToken } = await users.getUsers({ pageSize: 2, nextToken: null });
  assert.equal(first.length, 2);
  assert.equal(typeof nextToken, "string");
  const second = await users.getUsers({ pageSize: 2, nextToken });
  assert.notEqual(second.users[0].id, first[0].id);
  const organizations = await new OrganizationsApi(configuration).getOrganizations({});
  assert.ok(organizations.organizations.length > 0);
});

await check("a wrong secret ends in a 401 that the client can read", async () => {
  init({ kindeDomain: base, clientId, clientSecret: "x".repeat(48) });
  setToken("");
  const error = await refusal(401, () => Apis.getApis({}));
  assert.equal(error.message, "Unauthorized");
  assert.equal(typeof error.body.errors[0].code, "string");
});

console.log(`${passed} ${failed}`);
process.exitCode = failed === 0 ? 0 : 1;
