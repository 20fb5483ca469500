//! Environments: the tenants. Rows, and nothing of what hangs below them.

use keyward_core::EnvId;

use super::{Conn, id16, row, rows, run};
use crate::error::{Error, Result};

/// An environment as it is stored.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Its id.
    pub env: EnvId,
    /// Its short name, for people and the command line.
    pub slug: String,
    /// Its name.
    pub name: String,
    /// Its base URL, which is also the issuer of its tokens; no slash at the end.
    pub public_url: String,
    /// Host (and port, unless it is the scheme's own) of the base URL, in lower case.
    pub host: String,
    /// Prefixes of its keys, the one for new keys first.
    pub key_prefixes: Vec<String>,
    /// Whether a user unknown to Keyward is registered on first use.
    pub user_registration: bool,
    /// Whether keys are verified for callers without a token.
    pub public_verification: bool,
    /// How long a management token lives, in µs.
    pub token_life_us: i64,
    /// The last change.
    pub changed_seq: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    env_id: Vec<u8>,
    slug: String,
    name: String,
    public_url: String,
    host: String,
    key_prefixes: String,
    user_registration: i64,
    public_verification: i64,
    token_life_us: i64,
    changed_seq: i64,
}

impl TryFrom<Row> for Environment {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            env: EnvId::from_bytes(id16(&row.env_id)?),
            slug: row.slug,
            name: row.name,
            public_url: row.public_url,
            host: row.host,
            key_prefixes: row.key_prefixes.split(' ').map(str::to_owned).collect(),
            user_registration: row.user_registration != 0,
            public_verification: row.public_verification != 0,
            token_life_us: row.token_life_us,
            changed_seq: row.changed_seq,
        })
    }
}

/// Every environment, the oldest first.
pub(crate) async fn all_any_environment(conn: &mut Conn) -> Result<Vec<Environment>> {
    rows!(
        conn,
        Row,
        "select env_id, slug, name, public_url, host, key_prefixes, user_registration,
                public_verification, token_life_us, changed_seq
         from environments order by created_at, env_id",
    )?
    .into_iter()
    .map(Environment::try_from)
    .collect()
}

/// The environment that the command line calls `slug`.
pub(crate) async fn by_slug(conn: &mut Conn, slug: &str) -> Result<Option<Environment>> {
    row!(
        conn,
        Row,
        "select env_id, slug, name, public_url, host, key_prefixes, user_registration,
                public_verification, token_life_us, changed_seq
         from environments where slug = $1",
        slug,
    )?
    .map(Environment::try_from)
    .transpose()
}

/// One environment.
pub(crate) async fn find(conn: &mut Conn, env: EnvId) -> Result<Option<Environment>> {
    row!(
        conn,
        Row,
        "select env_id, slug, name, public_url, host, key_prefixes, user_registration,
                public_verification, token_life_us, changed_seq
         from environments where env_id = $1",
        env.bytes().as_slice(),
    )?
    .map(Environment::try_from)
    .transpose()
}

/// Stores a new environment.
pub(crate) async fn insert(conn: &mut Conn, e: &Environment, now: i64) -> Result<()> {
    run!(
        conn,
        "insert into environments
         (env_id, slug, name, public_url, host, key_prefixes, user_registration,
          public_verification, token_life_us, created_at, changed_seq)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        e.env.bytes().as_slice(),
        e.slug.as_str(),
        e.name.as_str(),
        e.public_url.as_str(),
        e.host.as_str(),
        e.key_prefixes.join(" "),
        i64::from(e.user_registration),
        i64::from(e.public_verification),
        e.token_life_us,
        now,
        e.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| named(error, e))
}

/// Stores what may change of an environment.
pub(crate) async fn update(conn: &mut Conn, e: &Environment) -> Result<()> {
    run!(
        conn,
        "update environments
         set name = $2, public_url = $3, host = $4, key_prefixes = $5, user_registration = $6,
             public_verification = $7, token_life_us = $8, changed_seq = $9
         where env_id = $1",
        e.env.bytes().as_slice(),
        e.name.as_str(),
        e.public_url.as_str(),
        e.host.as_str(),
        e.key_prefixes.join(" "),
        i64::from(e.user_registration),
        i64::from(e.public_verification),
        e.token_life_us,
        e.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| named(error, e))
}

fn named(error: Error, e: &Environment) -> Error {
    if super::breaks(&error, "environments_slug", "environments.slug") {
        Error::conflict("SLUG_TAKEN", format!("an environment `{}` exists already", e.slug))
    } else if super::breaks(&error, "environments_host", "environments.host") {
        Error::conflict("HOST_TAKEN", format!("another environment answers at `{}`", e.host))
    } else {
        error
    }
}
