//! Users as people see them, and the statements that change them.

use keyward_core::{EnvId, UserId};
use sqlx::QueryBuilder;

use super::{IDS_MAX, user_id};
use crate::error::{Error, Result};
use crate::store::{Conn, breaks, failed, id16, portions, repeated, row, run};

/// A user as it is stored.
#[derive(Debug, Clone)]
pub struct User {
    /// Its environment.
    pub env: EnvId,
    /// Its id, as the identity provider writes it.
    pub user: UserId,
    /// An id of another system, unique among the live users of the environment.
    pub provided_id: Option<String>,
    /// An e-mail address, unique in the same way.
    pub email: Option<String>,
    /// A user name; nothing is found by it.
    pub username: Option<String>,
    /// The given name.
    pub given_name: Option<String>,
    /// The family name.
    pub family_name: Option<String>,
    /// When it was registered, the last time if several; µs since the epoch.
    pub created_at: i64,
    /// Its keys are refused since then.
    pub suspended_at: Option<i64>,
    /// When it was deleted; its profile is gone since then.
    pub deleted_at: Option<i64>,
    /// Every key issued up to this sequence number is revoked; 0 for none.
    pub revoked_up_to: i64,
    /// The last change.
    pub changed_seq: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    env_id: Vec<u8>,
    user_id: String,
    provided_id: Option<String>,
    email: Option<String>,
    username: Option<String>,
    given_name: Option<String>,
    family_name: Option<String>,
    created_at: i64,
    suspended_at: Option<i64>,
    deleted_at: Option<i64>,
    revoked_up_to: i64,
    changed_seq: i64,
}

fn user(row: Row) -> Result<User> {
    Ok(User {
        env: EnvId::from_bytes(id16(&row.env_id)?),
        user: user_id(&row.user_id)?,
        provided_id: row.provided_id,
        email: row.email,
        username: row.username,
        given_name: row.given_name,
        family_name: row.family_name,
        created_at: row.created_at,
        suspended_at: row.suspended_at,
        deleted_at: row.deleted_at,
        revoked_up_to: row.revoked_up_to,
        changed_seq: row.changed_seq,
    })
}

/// One user, deleted or not.
pub(crate) async fn find_user(conn: &mut Conn, env: EnvId, id: &UserId) -> Result<Option<User>> {
    row!(
        conn,
        Row,
        "select env_id, user_id, provided_id, email, username, given_name, family_name, created_at,
                suspended_at, deleted_at, revoked_up_to, changed_seq
         from users where env_id = $1 and user_id = $2",
        env.bytes().as_slice(),
        id.as_str(),
    )?
    .map(user)
    .transpose()
}

/// The users among `ids` that exist, deleted ones too, in no particular order.
pub(crate) async fn users_among(conn: &mut Conn, env: EnvId, ids: &[UserId]) -> Result<Vec<User>> {
    let mut found = Vec::with_capacity(ids.len());
    for page in ids.chunks(IDS_MAX) {
        macro_rules! load {
            ($engine:ty, $c:expr) => {{
                let mut query = QueryBuilder::<$engine>::new(
                    "select env_id, user_id, provided_id, email, username, given_name, family_name,
                            created_at, suspended_at, deleted_at, revoked_up_to, changed_seq
                     from users where env_id = ",
                );
                query.push_bind(env.bytes().to_vec()).push(" and user_id in (");
                let mut list = query.separated(", ");
                for id in repeated(page, IDS_MAX) {
                    list.push_bind(id.to_string());
                }
                query.push(")");
                query.build_query_as::<Row>().fetch_all(&mut **$c).await
            }};
        }
        let loaded = match conn {
            Conn::Sqlite(c) => load!(sqlx::Sqlite, c),
            Conn::Postgres(c) => load!(sqlx::Postgres, c),
        }
        .map_err(failed)?;
        for row in loaded {
            found.push(user(row)?);
        }
    }
    Ok(found)
}

/// Which users a list shows; `None` shows all.
#[derive(Debug, Default, Clone)]
pub struct UserFilter {
    /// Only users with one of these ids.
    pub ids: Option<Vec<String>>,
    /// Only users with one of these e-mail addresses.
    pub emails: Option<Vec<String>>,
}

/// A page of the live users of `env` by id, beginning after `after`.
///
/// The filters are put into the statement only when they are asked for, so that each form can use
/// its own index.
pub(crate) async fn users_page(
    conn: &mut Conn,
    env: EnvId,
    filter: &UserFilter,
    after: &str,
    size: i64,
) -> Result<Vec<User>> {
    macro_rules! load {
        ($engine:ty, $c:expr) => {{
            let mut query = QueryBuilder::<$engine>::new(
                "select env_id, user_id, provided_id, email, username, given_name, family_name,
                        created_at, suspended_at, deleted_at, revoked_up_to, changed_seq
                 from users where deleted_at is null and env_id = ",
            );
            query.push_bind(env.bytes().to_vec());
            query.push(" and user_id > ").push_bind(after.to_owned());
            let columns = [(" and user_id in (", &filter.ids), (" and email in (", &filter.emails)];
            for (column, values) in columns {
                let Some(values) = values else { continue };
                query.push(column);
                let mut list = query.separated(", ");
                for value in values {
                    list.push_bind(value.clone());
                }
                query.push(")");
            }
            query.push(" order by user_id limit ").push_bind(size);
            query.build_query_as::<Row>().fetch_all(&mut **$c).await
        }};
    }
    match conn {
        Conn::Sqlite(c) => load!(sqlx::Sqlite, c),
        Conn::Postgres(c) => load!(sqlx::Postgres, c),
    }
    .map_err(failed)?
    .into_iter()
    .map(user)
    .collect()
}

/// Registers a user of whom only the id is known.
pub(crate) async fn register_user(
    conn: &mut Conn,
    env: EnvId,
    id: &UserId,
    now: i64,
    seq: i64,
) -> Result<()> {
    run!(
        conn,
        "insert into users (env_id, user_id, created_at, revoked_up_to, changed_seq)
         values ($1, $2, $3, 0, $4)",
        env.bytes().as_slice(),
        id.as_str(),
        now,
        seq,
    )?;
    Ok(())
}

/// Registers users of whom only the ids are known, each named once and with the change that does.
pub(crate) async fn register_users(
    conn: &mut Conn,
    env: EnvId,
    users: &[(UserId, i64)],
    now: i64,
) -> Result<()> {
    for page in portions(users, IDS_MAX) {
        macro_rules! register {
            ($engine:ty, $c:expr) => {
                QueryBuilder::<$engine>::new(
                    "insert into users (env_id, user_id, created_at, revoked_up_to, changed_seq) ",
                )
                .push_values(page, |mut row, (user, seq)| {
                    row.push_bind(env.bytes().to_vec())
                        .push_bind(user.to_string())
                        .push_bind(now)
                        .push_bind(0_i64)
                        .push_bind(*seq);
                })
                .build()
                .execute(&mut **$c)
                .await
                .map(|_| ())
            };
        }
        match conn {
            Conn::Sqlite(c) => register!(sqlx::Sqlite, c),
            Conn::Postgres(c) => register!(sqlx::Postgres, c),
        }
        .map_err(failed)?;
    }
    Ok(())
}

/// Stores a user whose id was never seen before.
pub(crate) async fn insert_user(conn: &mut Conn, u: &User) -> Result<()> {
    run!(
        conn,
        "insert into users
         (env_id, user_id, provided_id, email, username, given_name, family_name, created_at,
          revoked_up_to, changed_seq)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9)",
        u.env.bytes().as_slice(),
        u.user.as_str(),
        u.provided_id.as_deref(),
        u.email.as_deref(),
        u.username.as_deref(),
        u.given_name.as_deref(),
        u.family_name.as_deref(),
        u.created_at,
        u.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| taken(error, u))
}

/// Registers a deleted user again. `revoked_up_to` stays: no key from before comes back.
pub(crate) async fn restore_user(conn: &mut Conn, u: &User) -> Result<()> {
    run!(
        conn,
        "update users
         set provided_id = $3, email = $4, username = $5, given_name = $6, family_name = $7,
             created_at = $8, suspended_at = null, deleted_at = null, changed_seq = $9
         where env_id = $1 and user_id = $2 and deleted_at is not null",
        u.env.bytes().as_slice(),
        u.user.as_str(),
        u.provided_id.as_deref(),
        u.email.as_deref(),
        u.username.as_deref(),
        u.given_name.as_deref(),
        u.family_name.as_deref(),
        u.created_at,
        u.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| taken(error, u))
}

/// Stores what may change of a live user.
pub(crate) async fn update_user(conn: &mut Conn, u: &User) -> Result<()> {
    run!(
        conn,
        "update users
         set provided_id = $3, email = $4, username = $5, given_name = $6, family_name = $7,
             suspended_at = $8, changed_seq = $9
         where env_id = $1 and user_id = $2 and deleted_at is null",
        u.env.bytes().as_slice(),
        u.user.as_str(),
        u.provided_id.as_deref(),
        u.email.as_deref(),
        u.username.as_deref(),
        u.given_name.as_deref(),
        u.family_name.as_deref(),
        u.suspended_at,
        u.changed_seq,
    )
    .map(|_| ())
    .map_err(|error| taken(error, u))
}

/// Deletes a user with its profile and revokes every key issued to it up to `seq`; false when it
/// was deleted before. What it owns is not touched, so that this takes the same time for one key
/// and for a million.
pub(crate) async fn delete_user(
    conn: &mut Conn,
    env: EnvId,
    id: &UserId,
    now: i64,
    seq: i64,
) -> Result<bool> {
    let touched = run!(
        conn,
        "update users
         set provided_id = null, email = null, username = null, given_name = null,
             family_name = null, deleted_at = $3, revoked_up_to = $4, changed_seq = $4
         where env_id = $1 and user_id = $2 and deleted_at is null",
        env.bytes().as_slice(),
        id.as_str(),
        now,
        seq,
    )?;
    Ok(touched > 0)
}

/// Tells in words which of the user's unique values another user has.
fn taken(error: Error, u: &User) -> Error {
    if breaks(&error, "users_provided_id", "users.provided_id") {
        let value = u.provided_id.as_deref().unwrap_or_default();
        let public = format!("another user has the provided id `{value}`");
        Error::conflict("PROVIDED_ID_TAKEN", public)
    } else if breaks(&error, "users_email", "users.email") {
        Error::conflict("EMAIL_TAKEN", "another user has this e-mail address")
    } else {
        error
    }
}
