//! Memberships: which users belong to which organizations.

use keyward_core::{EnvId, OrgCode, UserId};
use sqlx::QueryBuilder;

use super::{IDS_MAX, org_code, user_id};
use crate::error::Result;
use crate::store::{Conn, failed, row, rows};

/// A membership as it is stored, present or past.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The user.
    pub user: UserId,
    /// When the user left.
    pub left_at: Option<i64>,
    /// The last change.
    pub changed_seq: i64,
}

#[derive(sqlx::FromRow)]
struct Row {
    user_id: String,
    left_at: Option<i64>,
    changed_seq: i64,
}

fn membership(row: Row) -> Result<Membership> {
    Ok(Membership {
        user: user_id(&row.user_id)?,
        left_at: row.left_at,
        changed_seq: row.changed_seq,
    })
}

/// Whether `user` belongs to `org`. Whether either of them was deleted is another question.
pub(crate) async fn is_member(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    user: &UserId,
) -> Result<bool> {
    let found = row!(
        conn,
        (i64,),
        "select joined_at from memberships
         where env_id = $1 and org_code = $2 and user_id = $3 and left_at is null",
        env.bytes().as_slice(),
        org.as_str(),
        user.as_str(),
    )?;
    Ok(found.is_some())
}

/// The memberships in `org` that any of `users` has or had, in no particular order.
pub(crate) async fn memberships_among(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    users: &[UserId],
) -> Result<Vec<Membership>> {
    let mut found = Vec::with_capacity(users.len());
    for page in users.chunks(IDS_MAX) {
        macro_rules! load {
            ($engine:ty, $c:expr) => {{
                let mut query = QueryBuilder::<$engine>::new(
                    "select user_id, left_at, changed_seq
                     from memberships where env_id = ",
                );
                query.push_bind(env.bytes().to_vec());
                query.push(" and org_code = ").push_bind(org.to_string());
                query.push(" and user_id in (");
                let mut list = query.separated(", ");
                for user in page {
                    list.push_bind(user.to_string());
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
            found.push(membership(row)?);
        }
    }
    Ok(found)
}

/// Makes `users`, each named once, members of `org`; those who left join again.
pub(crate) async fn join(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    users: &[UserId],
    now: i64,
    seq: i64,
) -> Result<()> {
    for page in users.chunks(IDS_MAX) {
        macro_rules! join {
            ($engine:ty, $c:expr) => {
                QueryBuilder::<$engine>::new(
                    "insert into memberships (env_id, org_code, user_id, joined_at, changed_seq) ",
                )
                .push_values(page, |mut row, user| {
                    row.push_bind(env.bytes().to_vec())
                        .push_bind(org.to_string())
                        .push_bind(user.to_string())
                        .push_bind(now)
                        .push_bind(seq);
                })
                .push(
                    " on conflict (env_id, org_code, user_id) do update
                     set joined_at = excluded.joined_at, left_at = null,
                         changed_seq = excluded.changed_seq
                     where memberships.left_at is not null",
                )
                .build()
                .execute(&mut **$c)
                .await
                .map(|_| ())
            };
        }
        match conn {
            Conn::Sqlite(c) => join!(sqlx::Sqlite, c),
            Conn::Postgres(c) => join!(sqlx::Postgres, c),
        }
        .map_err(failed)?;
    }
    Ok(())
}

/// Ends the memberships that `users` have in `org`.
pub(crate) async fn leave(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    users: &[UserId],
    now: i64,
    seq: i64,
) -> Result<()> {
    for page in users.chunks(IDS_MAX) {
        macro_rules! leave {
            ($engine:ty, $c:expr) => {{
                let mut query = QueryBuilder::<$engine>::new("update memberships set left_at = ");
                query.push_bind(now).push(", changed_seq = ").push_bind(seq);
                query.push(" where left_at is null and env_id = ");
                query.push_bind(env.bytes().to_vec());
                query.push(" and org_code = ").push_bind(org.to_string());
                query.push(" and user_id in (");
                let mut list = query.separated(", ");
                for user in page {
                    list.push_bind(user.to_string());
                }
                query.push(")");
                query.build().execute(&mut **$c).await.map(|_| ())
            }};
        }
        match conn {
            Conn::Sqlite(c) => leave!(sqlx::Sqlite, c),
            Conn::Postgres(c) => leave!(sqlx::Postgres, c),
        }
        .map_err(failed)?;
    }
    Ok(())
}

/// Ends every membership that `user` has; returns where.
pub(crate) async fn leave_everywhere(
    conn: &mut Conn,
    env: EnvId,
    user: &UserId,
    now: i64,
    seq: i64,
) -> Result<Vec<OrgCode>> {
    rows!(
        conn,
        (String,),
        "update memberships set left_at = $3, changed_seq = $4
         where env_id = $1 and user_id = $2 and left_at is null
         returning org_code",
        env.bytes().as_slice(),
        user.as_str(),
        now,
        seq,
    )?
    .iter()
    .map(|(org,)| org_code(org))
    .collect()
}

/// Users who belong to `org`, deleted or not; at most `most`.
pub(crate) async fn some_members(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    most: i64,
) -> Result<Vec<UserId>> {
    rows!(
        conn,
        (String,),
        "select user_id from memberships
         where env_id = $1 and org_code = $2 and left_at is null
         order by user_id limit $3",
        env.bytes().as_slice(),
        org.as_str(),
        most,
    )?
    .iter()
    .map(|(user,)| user_id(user))
    .collect()
}

/// A member as a list shows it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Member {
    /// The user's id.
    pub user_id: String,
    /// When the user joined, µs since the epoch.
    pub joined_at: i64,
    /// The user's e-mail address.
    pub email: Option<String>,
    /// The user's given name.
    pub given_name: Option<String>,
    /// The user's family name.
    pub family_name: Option<String>,
    /// The user's keys are refused since then.
    pub suspended_at: Option<i64>,
}

/// A page of the members of `org` by user id, beginning after `after`; nobody who was deleted.
pub(crate) async fn members_page(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    after: &str,
    size: i64,
) -> Result<Vec<Member>> {
    rows!(
        conn,
        Member,
        "select m.user_id, m.joined_at, u.email, u.given_name, u.family_name, u.suspended_at
         from memberships m join users u on u.env_id = m.env_id and u.user_id = m.user_id
         where m.env_id = $1 and m.org_code = $2 and m.left_at is null and m.user_id > $3
           and u.deleted_at is null
         order by m.user_id limit $4",
        env.bytes().as_slice(),
        org.as_str(),
        after,
        size,
    )
}

/// The live organizations that `user` belongs to, at most `most`.
pub(crate) async fn organizations_of(
    conn: &mut Conn,
    env: EnvId,
    user: &UserId,
    most: i64,
) -> Result<Vec<OrgCode>> {
    rows!(
        conn,
        (String,),
        "select m.org_code
         from memberships m
         join organizations o on o.env_id = m.env_id and o.org_code = m.org_code
         where m.env_id = $1 and m.user_id = $2 and m.left_at is null and o.deleted_at is null
         order by m.org_code limit $3",
        env.bytes().as_slice(),
        user.as_str(),
        most,
    )?
    .iter()
    .map(|(org,)| org_code(org))
    .collect()
}
