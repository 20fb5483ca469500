//! Register, change, suspend, restore and delete: what can happen to a user.
//!
//! A user who is registered again after being deleted starts from nothing: with a new profile,
//! without a membership, and without the keys of before. Joining organizations and leaving them is
//! in `organizations`; registration on first use is in `keys`, where that use is.

use keyward_core::{EnvId, OrgCode, UserId};
use serde_json::{Value, json};

use super::{Action, Context, put};
use crate::error::{Error, Result};
use crate::store::owners::User;
use crate::store::{Committed, Fact, Outcome, Store, Touched, Tx, owners};

/// What a new user shall be.
#[derive(Debug, Default, Clone)]
pub struct NewUser {
    /// The identity provider's id; absent, one is made.
    pub user: Option<UserId>,
    /// An id of another system.
    pub provided_id: Option<String>,
    /// An e-mail address.
    pub email: Option<String>,
    /// A user name.
    pub username: Option<String>,
    /// The given name.
    pub given_name: Option<String>,
    /// The family name.
    pub family_name: Option<String>,
    /// An organization to join.
    pub org: Option<OrgCode>,
}

/// Registers a user, or registers a deleted one again.
///
/// # Errors
/// `Conflict` when the id, the provided id or the e-mail address is another live user's;
/// `Invalid` when the organization does not exist.
pub async fn create(
    store: &Store,
    env: EnvId,
    context: &Context,
    new: NewUser,
) -> Result<Committed<UserId>> {
    store
        .write(env, context, Action::UserCreated, move |tx| {
            Box::pin(async move {
                let org = new.org.clone();
                let user = prepare(tx, env, new)?;
                let mut fact = fact(&user.user);
                match owners::find_user(&mut tx.conn, env, &user.user).await? {
                    None => owners::insert_user(&mut tx.conn, &user).await?,
                    Some(former) if former.deleted_at.is_some() => {
                        owners::restore_user(&mut tx.conn, &user).await?;
                        part_from_past(tx, env, &user.user, &mut fact).await?;
                        fact.before = Some(json!({ "deleted": true }));
                    }
                    Some(_) => {
                        let public = format!("there is a user `{}` already", user.user);
                        return Err(Error::conflict("USER_EXISTS", public));
                    }
                }
                let mut after = snapshot(&user);
                if let Some(org) = org {
                    join(tx, env, &org, &user.user).await?;
                    put(&mut after, "organization", json!(org.as_str()));
                    fact.touched.push(Touched::Membership(org.clone(), user.user.clone()));
                    fact.org = Some(org.to_string());
                }
                fact.after = Some(after);
                Ok(Outcome::Changed(user.user, fact))
            })
        })
        .await
}

fn prepare(tx: &Tx, env: EnvId, new: NewUser) -> Result<User> {
    let id = match new.user {
        Some(user) => user,
        None => {
            let digits = u128::from_be_bytes(tx.entropy.id(tx.now));
            UserId::parse(&format!("kp_{digits:032x}"))
                .ok_or_else(|| Error::internal("a generated user id is not one"))?
        }
    };
    Ok(User {
        env,
        user: id,
        provided_id: new.provided_id,
        email: new.email,
        username: new.username,
        given_name: new.given_name,
        family_name: new.family_name,
        created_at: tx.now,
        suspended_at: None,
        deleted_at: None,
        revoked_up_to: 0,
        changed_seq: tx.seq(),
    })
}

/// Ends the memberships that a deleted user had: deleting did not, so as not to depend on their
/// number, and being registered again must not bring them back.
async fn part_from_past(tx: &mut Tx, env: EnvId, user: &UserId, fact: &mut Fact) -> Result<()> {
    let (now, seq) = (tx.now, tx.seq());
    let left = owners::leave_everywhere(&mut tx.conn, env, user, now, seq).await?;
    let ended = left.into_iter().map(|org| Touched::Membership(org, user.clone()));
    fact.touched.extend(ended);
    Ok(())
}

async fn join(tx: &mut Tx, env: EnvId, org: &OrgCode, user: &UserId) -> Result<()> {
    let found = owners::find_org(&mut tx.conn, env, org).await?;
    if found.is_none_or(|org| org.deleted_at.is_some()) {
        let public = "`organization_code`: there is no such organization";
        return Err(Error::invalid("UNKNOWN_ORGANIZATION", public));
    }
    let (now, seq) = (tx.now, tx.seq());
    owners::join(&mut tx.conn, env, org, std::slice::from_ref(user), now, seq).await
}

/// What changes of a user; `None` leaves a field as it is, `Some(None)` clears it.
#[derive(Debug, Default, Clone)]
pub struct UserPatch {
    /// Another id of another system.
    pub provided_id: Option<Option<String>>,
    /// Another given name.
    pub given_name: Option<Option<String>>,
    /// Another family name.
    pub family_name: Option<Option<String>>,
    /// Suspended (`true`) or restored (`false`).
    pub suspended: Option<bool>,
}

/// Changes, suspends or restores a user; returns what the user is now.
///
/// # Errors
/// `NotFound`, also for a deleted user; `Conflict` when the provided id is another live user's.
pub async fn update(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: UserId,
    patch: UserPatch,
) -> Result<Committed<User>> {
    store
        .write(env, context, Action::UserUpdated, move |tx| {
            Box::pin(async move {
                let mut user = owners::find_user(&mut tx.conn, env, &id)
                    .await?
                    .filter(|user| user.deleted_at.is_none())
                    .ok_or_else(|| Error::not_found("user"))?;
                let before = snapshot(&user);
                user.provided_id = patch.provided_id.unwrap_or(user.provided_id);
                user.given_name = patch.given_name.unwrap_or(user.given_name);
                user.family_name = patch.family_name.unwrap_or(user.family_name);
                match patch.suspended {
                    Some(true) => user.suspended_at = user.suspended_at.or(Some(tx.now)),
                    Some(false) => user.suspended_at = None,
                    None => {}
                }
                let after = snapshot(&user);
                if before == after {
                    let seq = user.changed_seq;
                    return Ok(Outcome::Reached(user, seq));
                }
                user.changed_seq = tx.seq();
                owners::update_user(&mut tx.conn, &user).await?;
                let fact = Fact { before: Some(before), after: Some(after), ..fact(&id) };
                Ok(Outcome::Changed(user, fact))
            })
        })
        .await
}

/// Deletes a user and revokes the user's keys for good. A repeated call is told of the change
/// that did it.
///
/// # Errors
/// `NotFound` for a user who never was.
pub async fn delete(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: UserId,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::UserDeleted, move |tx| {
            Box::pin(async move {
                let user = owners::find_user(&mut tx.conn, env, &id)
                    .await?
                    .ok_or_else(|| Error::not_found("user"))?;
                let (now, seq) = (tx.now, tx.seq());
                if !owners::delete_user(&mut tx.conn, env, &id, now, seq).await? {
                    return Ok(Outcome::Reached((), user.changed_seq));
                }
                let after = json!({ "deleted": true });
                let before = Some(snapshot(&user));
                Ok(Outcome::Changed((), Fact { before, after: Some(after), ..fact(&id) }))
            })
        })
        .await
}

fn fact(id: &UserId) -> Fact {
    Fact {
        target_kind: "user",
        target_id: id.to_string(),
        user: Some(id.to_string()),
        touched: vec![Touched::User(id.clone())],
        ..Fact::default()
    }
}

/// What the audit log keeps of a user's state. The e-mail address is left out: the log outlives
/// the profile.
fn snapshot(user: &User) -> Value {
    json!({
        "provided_id": user.provided_id,
        "username": user.username,
        "given_name": user.given_name,
        "family_name": user.family_name,
        "suspended": user.suspended_at.is_some(),
    })
}
