//! The list of all tables, for copying them without knowing what they mean.
//!
//! A table is described in the migrations' own words; a test compares the list with what the
//! migrations make, so that a new table or column cannot be forgotten in a backup.

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `bigint`.
    Number,
    /// `text`.
    Text,
    /// `BLOB` or `BYTEA`.
    Bytes,
}

/// A table that belongs to a store.
#[derive(Debug)]
pub(super) struct Table {
    /// Its name.
    pub(super) name: &'static str,
    /// The columns of its primary key, which come first in `columns`.
    key: &'static str,
    /// The other columns.
    rest: &'static str,
}

impl Table {
    /// The columns of the primary key.
    pub(super) fn key(&self) -> Vec<(&'static str, Kind)> {
        columns(self.key)
    }

    /// Every column, those of the key first.
    pub(super) fn columns(&self) -> Vec<(&'static str, Kind)> {
        let mut all = self.key();
        all.extend(columns(self.rest));
        all
    }
}

fn columns(text: &'static str) -> Vec<(&'static str, Kind)> {
    text.split(',')
        .filter_map(|column| {
            let (name, kind) = column.trim().split_once(' ')?;
            let kind = match kind.trim() {
                "bigint" => Kind::Number,
                "text" => Kind::Text,
                _ => Kind::Bytes,
            };
            Some((name, kind))
        })
        .collect()
}

/// Every table of a store. `node_lease` is none of them: its rows belong to running processes.
pub(super) const TABLES: &[Table] = &[
    Table { name: "meta", key: "name text", rest: "value text" },
    Table {
        name: "environments",
        key: "env_id BLOB",
        rest: "slug text, name text, public_url text, host text, key_prefixes text,
               user_registration bigint, public_verification bigint, token_life_us bigint,
               created_at bigint, changed_seq bigint",
    },
    Table {
        name: "signing_keys",
        key: "kid text",
        rest: "env_id BLOB, public_n BLOB, public_e BLOB, private_sealed BLOB, created_at bigint,
               retired_at bigint",
    },
    Table {
        name: "peppers",
        key: "pepper_id bigint",
        rest: "check_value BLOB, created_at bigint, retired_at bigint",
    },
    Table {
        name: "applications",
        key: "app_id BLOB",
        rest: "env_id BLOB, name text, created_at bigint, disabled_at bigint, deleted_at bigint,
               changed_seq bigint",
    },
    Table {
        name: "application_secrets",
        key: "app_id BLOB, digest BLOB",
        rest: "pepper_id bigint, created_at bigint, expires_at bigint, generation bigint",
    },
    Table {
        name: "application_apis",
        key: "app_id BLOB, api_id BLOB",
        rest: "env_id BLOB, connected_at bigint",
    },
    Table {
        name: "application_scopes",
        key: "app_id BLOB, scope_id BLOB",
        rest: "env_id BLOB, api_id BLOB",
    },
    Table {
        name: "apis",
        key: "api_id BLOB",
        rest: "env_id BLOB, name text, audience text, is_management bigint, rights text,
               created_at bigint, deleted_at bigint, changed_seq bigint",
    },
    Table {
        name: "api_scopes",
        key: "scope_id BLOB",
        rest: "env_id BLOB, api_id BLOB, scope_key text, description text, created_at bigint,
               deleted_at bigint, changed_seq bigint",
    },
    Table {
        name: "users",
        key: "env_id BLOB, user_id text",
        rest: "provided_id text, email text, username text, given_name text, family_name text,
               created_at bigint, suspended_at bigint, deleted_at bigint, revoked_up_to bigint,
               changed_seq bigint",
    },
    Table {
        name: "organizations",
        key: "env_id BLOB, org_code text",
        rest: "name text, handle text, external_id text, created_at bigint, suspended_at bigint,
               deleted_at bigint, revoked_up_to bigint, changed_seq bigint",
    },
    Table {
        name: "memberships",
        key: "env_id BLOB, org_code text, user_id text",
        rest: "joined_at bigint, left_at bigint, changed_seq bigint",
    },
    Table {
        name: "api_keys",
        key: "key_id BLOB",
        rest: "env_id BLOB, name text, description text, metadata text, owner_kind bigint,
               user_id text, org_code text, api_id BLOB, scope_ids BLOB, issued_seq bigint,
               not_before bigint, expires_at bigint, disabled_at bigint, revoked_at bigint,
               revoke_reason text, imported bigint, key_prefix text, key_suffix text,
               created_at bigint, created_by text, changed_seq bigint",
    },
    Table {
        name: "key_secrets",
        key: "env_id BLOB, digest BLOB",
        rest: "key_id BLOB, pepper_id bigint, created_at bigint, superseded_at bigint",
    },
    Table {
        name: "counter_files",
        key: "file_id BLOB",
        rest: "generation bigint, opened_at bigint, closed_at bigint",
    },
    Table {
        name: "key_usage",
        key: "key_id BLOB, file_id BLOB",
        rest: "env_id BLOB, verified bigint, refused BLOB, last_at bigint, last_address text",
    },
    Table {
        name: "audit_log",
        key: "audit_no bigint",
        rest: "env_id BLOB, at bigint, actor_kind text, actor_id text, action text,
               target_kind text, target_id text, user_id text, org_code text, before_state text,
               after_state text, reason text, address text, user_agent text, request_id text,
               change_seq bigint",
    },
    Table {
        name: "idempotency_keys",
        key: "env_id BLOB, caller text, call text, idempotency_key text",
        rest: "body_hash BLOB, target_id text, created_at bigint, status bigint, reply text",
    },
    Table { name: "change_head", key: "one bigint", rest: "seq bigint" },
    Table {
        name: "change_log",
        key: "seq bigint",
        rest: "nonce BLOB, env_id BLOB, touched text, node_id BLOB, at bigint",
    },
];
