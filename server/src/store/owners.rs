//! Users, organizations and memberships: who can own keys.
//!
//! A deleted owner keeps its row, because the row says up to which change its keys are revoked;
//! a membership that has ended keeps its row, because the table must hear of its end. What people
//! see of them is in the file of each noun; what the table needs of them is here.
//!
//! Owners' ids are text, so that the order of pages is the engine's: bytes on SQLite, the
//! database's collation on PostgreSQL. A page is asked for by the last id of the page before, and
//! `>` and `order by` use the same order, so that no page can skip or repeat an id on either.

use keyward_core::{EnvId, MembershipRow, OrgCode, OrgRow, UserId, UserRow};

use super::{Conn, id16, row};
use crate::error::{Error, Result};

mod memberships;
mod organizations;
mod users;

pub use memberships::{Member, Membership};
pub(crate) use memberships::{
    is_member, join, leave, leave_everywhere, members_page, memberships_among, organizations_of,
    some_members,
};
pub use organizations::Organization;
pub(crate) use organizations::{
    delete_org, find_org, insert_org, orgs_page, restore_org, update_org,
};
pub use users::{User, UserFilter};
pub(crate) use users::{
    delete_user, find_user, insert_user, register_user, register_users, restore_user, update_user,
    users_among, users_page,
};

/// Most ids in one statement that names them one by one.
const IDS_MAX: usize = 500;

pub(super) fn user_id(text: &str) -> Result<UserId> {
    UserId::parse(text).ok_or_else(|| Error::internal("a user's id in the database is unreadable"))
}

pub(super) fn org_code(text: &str) -> Result<OrgCode> {
    OrgCode::parse(text)
        .ok_or_else(|| Error::internal("an organization's code in the database is unreadable"))
}

/// The table's word for "none of its keys is revoked" is another than the column's, which is 0.
/// Sequence numbers begin at 1.
pub(super) fn revoked_up_to(column: i64) -> i64 {
    if column == 0 { i64::MIN } else { column }
}

/// The columns of an owner that a verdict depends on.
#[derive(sqlx::FromRow)]
struct OwnerLoad {
    env_id: Vec<u8>,
    owner: String,
    suspended_at: Option<i64>,
    deleted_at: Option<i64>,
    revoked_up_to: i64,
}

impl OwnerLoad {
    fn user(self) -> Result<UserRow> {
        Ok(UserRow {
            env: EnvId::from_bytes(id16(&self.env_id)?),
            user: user_id(&self.owner)?,
            suspended: self.suspended_at.is_some(),
            deleted: self.deleted_at.is_some(),
            revoked_up_to: revoked_up_to(self.revoked_up_to),
        })
    }

    fn org(self) -> Result<OrgRow> {
        Ok(OrgRow {
            env: EnvId::from_bytes(id16(&self.env_id)?),
            org: org_code(&self.owner)?,
            suspended: self.suspended_at.is_some(),
            deleted: self.deleted_at.is_some(),
            revoked_up_to: revoked_up_to(self.revoked_up_to),
        })
    }
}

#[derive(sqlx::FromRow)]
struct MembershipLoad {
    env_id: Vec<u8>,
    org_code: String,
    user_id: String,
    left_at: Option<i64>,
}

impl MembershipLoad {
    fn membership(self) -> Result<MembershipRow> {
        Ok(MembershipRow {
            env: EnvId::from_bytes(id16(&self.env_id)?),
            org: org_code(&self.org_code)?,
            user: user_id(&self.user_id)?,
            member: self.left_at.is_none(),
        })
    }
}

/// How many users there are, deleted ones too.
pub(crate) async fn count_users_any_environment(conn: &mut Conn) -> Result<i64> {
    Ok(row!(conn, (i64,), "select count(*) from users")?.map_or(0, |(count,)| count))
}

/// One user for the table, deleted or not.
pub(crate) async fn user_row(
    conn: &mut Conn,
    env: EnvId,
    user: &UserId,
) -> Result<Option<UserRow>> {
    row!(
        conn,
        OwnerLoad,
        "select env_id, user_id as owner, suspended_at, deleted_at, revoked_up_to
         from users where env_id = $1 and user_id = $2",
        env.bytes().as_slice(),
        user.as_str(),
    )?
    .map(OwnerLoad::user)
    .transpose()
}

/// One organization for the table, deleted or not.
pub(crate) async fn org_row(conn: &mut Conn, env: EnvId, org: &OrgCode) -> Result<Option<OrgRow>> {
    row!(
        conn,
        OwnerLoad,
        "select env_id, org_code as owner, suspended_at, deleted_at, revoked_up_to
         from organizations where env_id = $1 and org_code = $2",
        env.bytes().as_slice(),
        org.as_str(),
    )?
    .map(OwnerLoad::org)
    .transpose()
}

/// One membership for the table, ended or not.
pub(crate) async fn membership_row(
    conn: &mut Conn,
    env: EnvId,
    org: &OrgCode,
    user: &UserId,
) -> Result<Option<MembershipRow>> {
    row!(
        conn,
        MembershipLoad,
        "select env_id, org_code, user_id, left_at
         from memberships where env_id = $1 and org_code = $2 and user_id = $3",
        env.bytes().as_slice(),
        org.as_str(),
        user.as_str(),
    )?
    .map(MembershipLoad::membership)
    .transpose()
}
