//! Keys and their secrets' digests.

use std::collections::HashSet;

use keyward_core::{
    ApiId, Digest, EnvId, KeyId, KeyRow, OrgCode, Owner, Scheme, ScopeId, SecretRow, UserId,
};
use sqlx::QueryBuilder;

use super::{Conn, id16, row, rows, run};
use crate::error::{Error, Result};

/// The pepper id that says "imported, an unpeppered SHA-256".
pub(crate) const UNPEPPERED: u32 = 0;

/// A key as people see it: everything but its secrets.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its id.
    pub key: KeyId,
    /// Its environment.
    pub env: EnvId,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// A JSON object of strings, as text.
    pub metadata: Option<String>,
    /// Whom it belongs to.
    pub owner: Owner,
    /// The API it is for.
    pub api: ApiId,
    /// The scopes it was given.
    pub scopes: Vec<ScopeId>,
    /// The change that issued it.
    pub issued_seq: i64,
    /// Not good before, µs since the epoch.
    pub not_before: Option<i64>,
    /// Not good from then on.
    pub expires_at: Option<i64>,
    /// Disabled since.
    pub disabled_at: Option<i64>,
    /// Whether it came with a secret made elsewhere. A rotation does not change that: the former
    /// secret is still looked up, to be told from a guess.
    pub imported: bool,
    /// The first six characters of its secret.
    pub key_prefix: String,
    /// The last four.
    pub key_suffix: String,
    /// When it was issued.
    pub created_at: i64,
    /// Who issued it.
    pub created_by: Option<String>,
    /// The last change of the key itself.
    pub changed_seq: i64,
    /// `active`, `inactive` or `revoked`, its owners and its API taken into account.
    pub status: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    key_id: Vec<u8>,
    env_id: Vec<u8>,
    name: String,
    description: Option<String>,
    metadata: Option<String>,
    owner_kind: i64,
    user_id: Option<String>,
    org_code: Option<String>,
    api_id: Vec<u8>,
    scope_ids: Vec<u8>,
    issued_seq: i64,
    not_before: Option<i64>,
    expires_at: Option<i64>,
    disabled_at: Option<i64>,
    imported: i64,
    key_prefix: String,
    key_suffix: String,
    created_at: i64,
    created_by: Option<String>,
    changed_seq: i64,
    status: String,
}

fn key(row: Row) -> Result<Key> {
    Ok(Key {
        key: KeyId::from_bytes(id16(&row.key_id)?),
        env: EnvId::from_bytes(id16(&row.env_id)?),
        owner: owner(row.owner_kind, row.user_id.as_deref(), row.org_code.as_deref())?,
        api: ApiId::from_bytes(id16(&row.api_id)?),
        scopes: scope_ids(&row.scope_ids),
        name: row.name,
        description: row.description,
        metadata: row.metadata,
        issued_seq: row.issued_seq,
        not_before: row.not_before,
        expires_at: row.expires_at,
        disabled_at: row.disabled_at,
        imported: row.imported != 0,
        key_prefix: row.key_prefix,
        key_suffix: row.key_suffix,
        created_at: row.created_at,
        created_by: row.created_by,
        changed_seq: row.changed_seq,
        status: row.status,
    })
}

/// An owner from its kind and, as far as that kind has them, its user and its organization.
pub(super) fn owner(kind: i64, user: Option<&str>, org: Option<&str>) -> Result<Owner> {
    let user = user.and_then(UserId::parse);
    let org = org.and_then(OrgCode::parse);
    match (kind, user, org) {
        (0, _, _) => Ok(Owner::Environment),
        (1, Some(user), _) => Ok(Owner::User(user)),
        (2, _, Some(org)) => Ok(Owner::Org(org)),
        (3, Some(user), Some(org)) => Ok(Owner::UserInOrg(user, org)),
        _ => Err(Error::internal("a key in the database has no readable owner")),
    }
}

/// The kind, the user and the organization of an owner, as columns.
fn owner_columns(owner: &Owner) -> (i64, Option<&str>, Option<&str>) {
    match owner {
        Owner::Environment => (0, None, None),
        Owner::User(user) => (1, Some(user.as_str()), None),
        Owner::Org(org) => (2, None, Some(org.as_str())),
        Owner::UserInOrg(user, org) => (3, Some(user.as_str()), Some(org.as_str())),
    }
}

fn scope_ids(bytes: &[u8]) -> Vec<ScopeId> {
    bytes.as_chunks::<16>().0.iter().map(|id| ScopeId::from_bytes(*id)).collect()
}

/// One key.
pub(crate) async fn find(conn: &mut Conn, env: EnvId, id: KeyId) -> Result<Option<Key>> {
    row!(
        conn,
        Row,
        "select key_id, env_id, name, description, metadata, owner_kind, user_id, org_code, api_id,
                scope_ids, issued_seq, not_before, expires_at, disabled_at, imported, key_prefix,
                key_suffix, created_at, created_by,
                changed_seq, status
         from key_states where env_id = $1 and key_id = $2",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
    )?
    .map(key)
    .transpose()
}

/// Which keys a list shows; `None` shows all.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// Only keys of users (`true`) or of organizations (`false`).
    pub of_users: Option<bool>,
    /// Only keys with this status.
    pub status: Option<String>,
    /// Only keys of this user.
    pub user: Option<String>,
    /// Only keys of this organization, its members' keys inside it included.
    pub org: Option<String>,
    /// Only keys of this API.
    pub api: Option<ApiId>,
    /// Only keys with exactly this name.
    pub name: Option<String>,
    /// Only keys that expire before, µs since the epoch.
    pub expiring_before: Option<i64>,
}

/// A page of keys, the newest first, beginning after the key `after`.
///
/// The owner is part of the statement, so that each form can use its own index.
pub(crate) async fn page(
    conn: &mut Conn,
    env: EnvId,
    filter: &Filter,
    after: Option<KeyId>,
    size: i64,
) -> Result<Vec<Key>> {
    let env = env.bytes().as_slice();
    let after = after.map_or([0xff; 16], |key| *key.bytes());
    let kind = filter.of_users.map(i64::from);
    let api = filter.api.map(|api| api.bytes().to_vec());
    macro_rules! page {
        ($owner:literal, $id:expr) => {
            rows!(
                conn,
                Row,
                concat!(
                    "select key_id, env_id, name, description, metadata, owner_kind, user_id,
                            org_code, api_id, scope_ids, issued_seq, not_before, expires_at,
                            disabled_at, imported, key_prefix,
                            key_suffix, created_at, created_by, changed_seq, status
                     from key_states where env_id = $1 and key_id < $2 and ",
                    $owner,
                    " and ($4 is null or ($4 = 1 and owner_kind in (1, 3))
                           or ($4 = 0 and owner_kind = 2))
                      and ($5 is null or status = $5)
                      and ($6 is null or org_code = $6)
                      and ($7 is null or api_id = $7)
                      and ($8 is null or name = $8)
                      and ($9 is null or expires_at < $9)
                     order by key_id desc limit $10"
                ),
                env,
                after.as_slice(),
                $id,
                kind,
                filter.status.as_deref(),
                filter.org.as_deref(),
                api.as_deref(),
                filter.name.as_deref(),
                filter.expiring_before,
                size,
            )
        };
    }
    match (&filter.user, &filter.org) {
        (Some(user), _) => page!("user_id = $3", user.as_str()),
        (None, Some(org)) => page!("org_code = $3", org.as_str()),
        (None, None) => page!("$3 is not null", ""),
    }?
    .into_iter()
    .map(key)
    .collect()
}

/// A new key with the digest of its secret.
#[derive(Debug)]
pub(crate) struct Minted {
    pub(crate) key: Key,
    pub(crate) digest: Digest,
    pub(crate) pepper_id: u32,
}

/// Inserts a page of keys, and then their secrets.
macro_rules! insert_page {
    ($engine:ty, $c:expr, $page:expr, $now:expr) => {{
        QueryBuilder::<$engine>::new(
            "insert into api_keys
             (key_id, env_id, name, description, metadata, owner_kind, user_id, org_code, api_id,
              scope_ids, issued_seq, not_before, expires_at, imported, key_prefix, key_suffix,
              created_at, created_by, changed_seq) ",
        )
        .push_values($page, |mut row, Minted { key: k, .. }| {
            let (owner_kind, user, org) = owner_columns(&k.owner);
            let scopes: Vec<u8> = k.scopes.iter().flat_map(|scope| *scope.bytes()).collect();
            row.push_bind(k.key.bytes().to_vec())
                .push_bind(k.env.bytes().to_vec())
                .push_bind(k.name.as_str())
                .push_bind(k.description.as_deref())
                .push_bind(k.metadata.as_deref())
                .push_bind(owner_kind)
                .push_bind(user)
                .push_bind(org)
                .push_bind(k.api.bytes().to_vec())
                .push_bind(scopes)
                .push_bind(k.issued_seq)
                .push_bind(k.not_before)
                .push_bind(k.expires_at)
                .push_bind(i64::from(k.imported))
                .push_bind(k.key_prefix.as_str())
                .push_bind(k.key_suffix.as_str())
                .push_bind(k.created_at)
                .push_bind(k.created_by.as_deref())
                .push_bind(k.changed_seq);
        })
        .build()
        .execute(&mut **$c)
        .await
        .map_err(super::failed)?;
        QueryBuilder::<$engine>::new(
            "insert into key_secrets (env_id, digest, key_id, pepper_id, created_at) ",
        )
        .push_values($page, |mut row, Minted { key: k, digest, pepper_id }| {
            row.push_bind(k.env.bytes().to_vec())
                .push_bind(digest.bytes().to_vec())
                .push_bind(k.key.bytes().to_vec())
                .push_bind(i64::from(*pepper_id))
                .push_bind($now);
        })
        .build()
        .execute(&mut **$c)
        .await
        .map(|_| ())
    }};
}
/// Rows in one statement: 19 values each, of the 32,766 that SQLite takes.
const INSERT_ROWS: usize = 500;

/// Stores new keys, each with the digest of its secret.
pub(crate) async fn insert(conn: &mut Conn, minted: &[Minted], now: i64) -> Result<()> {
    for page in super::portions(minted, INSERT_ROWS) {
        match conn {
            Conn::Sqlite(c) => insert_page!(sqlx::Sqlite, c, page, now),
            Conn::Postgres(c) => insert_page!(sqlx::Postgres, c, page, now),
        }
        .map_err(super::failed)?;
    }
    Ok(())
}

/// Stores what may change of a key.
pub(crate) async fn update(conn: &mut Conn, k: &Key) -> Result<()> {
    run!(
        conn,
        "update api_keys
         set name = $3, description = $4, metadata = $5, not_before = $6, expires_at = $7,
             disabled_at = $8, changed_seq = $9
         where env_id = $1 and key_id = $2",
        k.env.bytes().as_slice(),
        k.key.bytes().as_slice(),
        k.name.as_str(),
        k.description.as_deref(),
        k.metadata.as_deref(),
        k.not_before,
        k.expires_at,
        k.disabled_at,
        k.changed_seq,
    )?;
    Ok(())
}

/// Revokes a key; false when it was revoked before. A revocation is never undone.
pub(crate) async fn revoke(
    conn: &mut Conn,
    env: EnvId,
    id: KeyId,
    reason: Option<&str>,
    now: i64,
    seq: i64,
) -> Result<bool> {
    let touched = run!(
        conn,
        "update api_keys set revoked_at = $3, revoke_reason = $4, changed_seq = $5
         where env_id = $1 and key_id = $2 and revoked_at is null",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
        now,
        reason,
        seq,
    )?;
    Ok(touched > 0)
}

/// Stores a secret's digest for a key.
pub(crate) async fn insert_secret(
    conn: &mut Conn,
    env: EnvId,
    id: KeyId,
    digest: &Digest,
    pepper_id: u32,
    now: i64,
) -> Result<()> {
    run!(
        conn,
        "insert into key_secrets (env_id, digest, key_id, pepper_id, created_at)
         values ($1, $2, $3, $4, $5)",
        env.bytes().as_slice(),
        digest.bytes().as_slice(),
        id.bytes().as_slice(),
        i64::from(pepper_id),
        now,
    )
    .map(|_| ())
    .map_err(|error| {
        if super::breaks(&error, "key_secrets_pkey", "key_secrets.digest") {
            Error::conflict("SECRET_TAKEN", "a key with this hash exists already")
        } else {
            error
        }
    })
}

/// Which of `digests` a key of `env` has, has had, or was imported with.
pub(crate) async fn digests_among(
    conn: &mut Conn,
    env: EnvId,
    digests: &[Digest],
) -> Result<HashSet<Digest>> {
    let mut known = HashSet::new();
    for page in digests.chunks(200) {
        macro_rules! among {
            ($engine:ty, $c:expr) => {{
                let mut query =
                    QueryBuilder::<$engine>::new("select digest from key_secrets where env_id = ");
                query.push_bind(env.bytes().to_vec()).push(" and digest in (");
                let mut list = query.separated(", ");
                for digest in page {
                    list.push_bind(digest.bytes().to_vec());
                }
                query.push(")");
                query.build_query_scalar::<Vec<u8>>().fetch_all(&mut **$c).await
            }};
        }
        let found = match conn {
            Conn::Sqlite(c) => among!(sqlx::Sqlite, c),
            Conn::Postgres(c) => among!(sqlx::Postgres, c),
        }
        .map_err(super::failed)?;
        for digest in found {
            known.insert(super::digest(&digest)?);
        }
    }
    Ok(known)
}

/// Ends every present secret of a key and notes the ends of the new one.
///
/// The secrets end with the change and not at its time: another node's clock may be behind by what
/// a question to the database takes, and would go on saying yes until it got there. So they are
/// superseded since the epoch; the audit log has the time.
pub(crate) async fn supersede_secrets(
    conn: &mut Conn,
    env: EnvId,
    id: KeyId,
    (prefix, suffix): (&str, &str),
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "update key_secrets set superseded_at = 0
         where env_id = $1 and key_id = $2 and superseded_at is null",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
    )?;
    run!(
        conn,
        "update api_keys set key_prefix = $3, key_suffix = $4, changed_seq = $5
         where env_id = $1 and key_id = $2",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
        prefix,
        suffix,
        seq,
    )?;
    Ok(())
}

/// Puts a peppered digest in the place of an imported one; false when it is no longer there.
pub(crate) async fn rehash_secret(
    conn: &mut Conn,
    env: EnvId,
    id: KeyId,
    from: &Digest,
    to: &Digest,
    pepper_id: u32,
) -> Result<bool> {
    let touched = run!(
        conn,
        "update key_secrets set digest = $4, pepper_id = $5
         where env_id = $1 and digest = $3 and key_id = $2 and pepper_id = 0",
        env.bytes().as_slice(),
        id.bytes().as_slice(),
        from.bytes().as_slice(),
        to.bytes().as_slice(),
        i64::from(pepper_id),
    )?;
    Ok(touched > 0)
}

/// What the table needs of a key and one of its secrets.
#[derive(sqlx::FromRow)]
struct LoadRow {
    key_id: Vec<u8>,
    env_id: Vec<u8>,
    name: String,
    metadata: Option<String>,
    owner_kind: i64,
    user_id: Option<String>,
    org_code: Option<String>,
    api_id: Vec<u8>,
    scope_ids: Vec<u8>,
    issued_seq: i64,
    not_before: Option<i64>,
    expires_at: Option<i64>,
    disabled_at: Option<i64>,
    revoked_at: Option<i64>,
    imported: i64,
    digest: Vec<u8>,
    pepper_id: i64,
    superseded_at: Option<i64>,
}

/// How a digest was made, by the id of its pepper.
pub(super) fn scheme(pepper_id: i64) -> Result<Scheme> {
    match u32::try_from(pepper_id) {
        Ok(UNPEPPERED) => Ok(Scheme::Sha256),
        Ok(pepper) => Ok(Scheme::Pepper(pepper)),
        Err(_) => Err(Error::internal("a pepper's id cannot be read")),
    }
}

/// Joins consecutive rows of one key into one [`KeyRow`].
fn table_rows(loaded: Vec<LoadRow>) -> Result<Vec<KeyRow>> {
    let mut keys: Vec<KeyRow> = Vec::with_capacity(loaded.len());
    for row in loaded {
        let secret = SecretRow {
            digest: super::digest(&row.digest)?,
            scheme: scheme(row.pepper_id)?,
            superseded_at: row.superseded_at,
        };
        let id = KeyId::from_bytes(id16(&row.key_id)?);
        if let Some(last) = keys.last_mut()
            && last.key == id
        {
            last.secrets.push(secret);
            continue;
        }
        keys.push(KeyRow {
            env: EnvId::from_bytes(id16(&row.env_id)?),
            key: id,
            name: row.name.into_boxed_str(),
            metadata: row.metadata.map(String::into_boxed_str),
            owner: owner(row.owner_kind, row.user_id.as_deref(), row.org_code.as_deref())?,
            api: ApiId::from_bytes(id16(&row.api_id)?),
            scopes: scope_ids(&row.scope_ids),
            issued_seq: row.issued_seq,
            not_before: row.not_before,
            expires_at: row.expires_at,
            disabled: row.disabled_at.is_some(),
            revoked: row.revoked_at.is_some(),
            imported: row.imported != 0,
            secrets: vec![secret],
            base_count: 0,
            base_verified_at: 0,
        });
    }
    Ok(keys)
}

/// How many keys there are, for the progress of loading them.
pub(crate) async fn count_any_environment(conn: &mut Conn) -> Result<i64> {
    Ok(row!(conn, (i64,), "select count(*) from api_keys")?.map_or(0, |(count,)| count))
}

/// The keys in `ids` for the table; one that is missing is gone.
pub(crate) async fn load_some(conn: &mut Conn, ids: &[KeyId]) -> Result<Vec<KeyRow>> {
    let mut keys = Vec::with_capacity(ids.len());
    for page in ids.chunks(200) {
        macro_rules! load {
            ($engine:ty, $c:expr) => {{
                let mut query = QueryBuilder::<$engine>::new(
                    "select k.key_id, k.env_id, k.name, k.metadata, k.owner_kind, k.user_id,
                            k.org_code, k.api_id, k.scope_ids, k.issued_seq, k.not_before,
                            k.expires_at, k.disabled_at, k.revoked_at, k.imported, s.digest,
                            s.pepper_id, s.superseded_at
                     from api_keys k join key_secrets s on s.key_id = k.key_id
                     where k.key_id in (",
                );
                let mut list = query.separated(", ");
                for id in super::repeated(page, 200) {
                    list.push_bind(id.bytes().to_vec());
                }
                query.push(") order by k.key_id");
                query.build_query_as::<LoadRow>().fetch_all(&mut **$c).await
            }};
        }
        let loaded = match conn {
            Conn::Sqlite(c) => load!(sqlx::Sqlite, c),
            Conn::Postgres(c) => load!(sqlx::Postgres, c),
        }
        .map_err(super::failed)?;
        keys.append(&mut table_rows(loaded)?);
    }
    Ok(keys)
}
