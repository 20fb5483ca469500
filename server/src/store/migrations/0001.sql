-- Keyward's first schema. One text for both engines; `schema` says how PostgreSQL reads it.
-- Times are µs since the Unix epoch, flags are times or 0/1, our own ids are 16 bytes,
-- owners' ids are text as the identity provider gives them. Every table names its environment.
create table meta (
    name text primary key,
    value text not null
);
create table environments (
    env_id BLOB primary key,
    slug text not null,
    name text not null,
    public_url text not null,
    host text not null,
    key_prefixes text not null, -- Space separated, the current one first.
    user_registration bigint not null,
    public_verification bigint not null,
    token_life_us bigint not null,
    created_at bigint not null,
    changed_seq bigint not null
);
create unique index environments_slug on environments (slug);
create unique index environments_host on environments (host);
create table signing_keys (
    kid text primary key,
    env_id BLOB not null,
    public_n BLOB not null,
    public_e BLOB not null,
    private_sealed BLOB not null,
    created_at bigint not null,
    retired_at bigint
);
create index signing_keys_env on signing_keys (env_id);
create table peppers (
    pepper_id bigint primary key,
    check_value BLOB not null,
    created_at bigint not null,
    retired_at bigint
);
create table applications (
    app_id BLOB primary key,
    env_id BLOB not null,
    name text not null,
    created_at bigint not null,
    disabled_at bigint,
    deleted_at bigint,
    changed_seq bigint not null
);
create index applications_env on applications (env_id, app_id);
create table application_secrets (
    app_id BLOB not null,
    digest BLOB not null,
    pepper_id bigint not null,
    created_at bigint not null,
    expires_at bigint,
    generation bigint not null, -- Tokens got with the secret carry it; another one ends them.
    primary key (app_id, digest)
);
create table application_apis (
    env_id BLOB not null,
    app_id BLOB not null,
    api_id BLOB not null,
    connected_at bigint not null,
    primary key (app_id, api_id)
);
create index application_apis_api on application_apis (api_id, app_id);
create table application_scopes (
    env_id BLOB not null,
    app_id BLOB not null,
    api_id BLOB not null,
    scope_id BLOB not null,
    primary key (app_id, scope_id)
);
create table apis (
    api_id BLOB primary key,
    env_id BLOB not null,
    name text not null,
    audience text not null,
    is_management bigint not null,
    rights text not null,
    created_at bigint not null,
    deleted_at bigint,
    changed_seq bigint not null
);
create index apis_env on apis (env_id, api_id);
create unique index apis_audience on apis (env_id, audience) where deleted_at is null;
create table api_scopes (
    scope_id BLOB primary key,
    env_id BLOB not null,
    api_id BLOB not null,
    scope_key text not null,
    description text,
    created_at bigint not null,
    deleted_at bigint,
    changed_seq bigint not null
);
create index api_scopes_api on api_scopes (api_id, scope_id);
create unique index api_scopes_key on api_scopes (api_id, scope_key) where deleted_at is null;
create table users (
    env_id BLOB not null,
    user_id text not null,
    provided_id text,
    email text,
    username text,
    given_name text,
    family_name text,
    created_at bigint not null,
    suspended_at bigint,
    deleted_at bigint,
    revoked_up_to bigint not null, -- Every key issued up to this sequence number is revoked.
    changed_seq bigint not null,
    primary key (env_id, user_id)
);
create unique index users_provided_id on users (env_id, provided_id) where deleted_at is null;
create unique index users_email on users (env_id, email) where deleted_at is null;
create table organizations (
    env_id BLOB not null,
    org_code text not null,
    name text not null,
    handle text,
    external_id text,
    created_at bigint not null,
    suspended_at bigint,
    deleted_at bigint,
    revoked_up_to bigint not null,
    changed_seq bigint not null,
    primary key (env_id, org_code)
);
create unique index organizations_handle
    on organizations (env_id, handle) where deleted_at is null;
create unique index organizations_external_id
    on organizations (env_id, external_id) where deleted_at is null;
create table memberships (
    env_id BLOB not null,
    org_code text not null,
    user_id text not null,
    joined_at bigint not null,
    left_at bigint,
    changed_seq bigint not null,
    primary key (env_id, org_code, user_id)
);
create index memberships_user on memberships (env_id, user_id);
create index memberships_present
    on memberships (env_id, org_code, user_id) where left_at is null;
create table api_keys (
    key_id BLOB primary key,
    env_id BLOB not null,
    name text not null,
    description text,
    metadata text, -- A JSON object of strings.
    owner_kind bigint not null, -- 0 environment, 1 user, 2 organization, 3 user in organization.
    user_id text,
    org_code text,
    api_id BLOB not null,
    scope_ids BLOB not null, -- 16 bytes each, in the order asked for.
    issued_seq bigint not null,
    not_before bigint,
    expires_at bigint,
    disabled_at bigint,
    revoked_at bigint,
    revoke_reason text,
    imported bigint not null,
    key_prefix text not null,
    key_suffix text not null,
    created_at bigint not null,
    created_by text,
    changed_seq bigint not null
);
create index api_keys_env on api_keys (env_id, key_id);
create index api_keys_user on api_keys (env_id, user_id, key_id);
create index api_keys_org on api_keys (env_id, org_code, key_id);
create index api_keys_api on api_keys (env_id, api_id, key_id);
create table key_secrets (
    env_id BLOB not null,
    digest BLOB not null,
    key_id BLOB not null,
    pepper_id bigint not null, -- 0: imported, an unpeppered SHA-256.
    created_at bigint not null,
    superseded_at bigint,
    primary key (env_id, digest)
);
create index key_secrets_key on key_secrets (key_id);
create table counter_files (
    file_id BLOB primary key,
    generation bigint not null,
    opened_at bigint not null,
    closed_at bigint
);
create table key_usage (
    key_id BLOB not null,
    file_id BLOB not null,
    env_id BLOB not null,
    verified bigint not null,
    refused BLOB not null, -- Twelve big-endian u64, in the order of core's refusals after Invalid.
    last_at bigint not null,
    last_address text,
    primary key (key_id, file_id)
);
create index key_usage_file on key_usage (file_id);
create table audit_log (
    audit_no bigint primary key,
    env_id BLOB not null,
    at bigint not null,
    actor_kind text not null,
    actor_id text not null,
    action text not null,
    target_kind text not null,
    target_id text not null,
    user_id text,
    org_code text,
    before_state text,
    after_state text,
    reason text,
    address text,
    user_agent text,
    request_id text not null,
    change_seq bigint
);
create index audit_log_target on audit_log (env_id, target_id, audit_no);
create table idempotency_keys (
    env_id BLOB not null,
    caller text not null,
    call text not null,
    idempotency_key text not null,
    body_hash BLOB not null,
    target_id text not null,
    created_at bigint not null,
    status bigint,
    reply text,
    primary key (env_id, caller, call, idempotency_key)
);
create index idempotency_keys_created on idempotency_keys (created_at);
create table change_head (
    one bigint primary key,
    seq bigint not null
);
create table change_log (
    seq bigint primary key,
    nonce BLOB not null,
    env_id BLOB not null,
    touched text not null, -- One line for each object: its kind, a space, its id.
    node_id BLOB not null,
    at bigint not null
);
create index change_log_at on change_log (at);
create table node_lease (
    node_id BLOB primary key,
    gen bigint not null,
    acked_seq bigint not null,
    lease_us bigint not null,
    renewed_at bigint not null
);
insert into change_head (one, seq) values (1, 0);
-- What a key is good for beyond its own row: its owners and its API can have revoked it.
create view key_states as
select k.key_id, k.env_id, k.name, k.description, k.metadata, k.owner_kind, k.user_id, k.org_code,
       k.api_id, k.scope_ids, k.issued_seq, k.not_before, k.expires_at, k.disabled_at,
       k.revoked_at, k.revoke_reason, k.imported, k.key_prefix, k.key_suffix, k.created_at,
       k.created_by, k.changed_seq,
       case
           when k.revoked_at is not null or a.deleted_at is not null
                or coalesce(u.revoked_up_to, 0) >= k.issued_seq
                or coalesce(o.revoked_up_to, 0) >= k.issued_seq then 'revoked'
           when k.disabled_at is not null then 'inactive'
           else 'active'
       end as status
from api_keys k
left join apis a on a.api_id = k.api_id
left join users u on u.env_id = k.env_id and u.user_id = k.user_id
left join organizations o on o.env_id = k.env_id and o.org_code = k.org_code;
