//! Make, change, suspend, restore and delete an organization; let users join and leave it.
//!
//! An organization that is made anew under the code of a deleted one starts from nothing: without
//! a member, and without the keys of before.

use std::collections::{HashMap, HashSet};

use keyward_core::{EnvId, OrgCode, UserId};
use serde_json::{Value, json};

use super::{Action, Context, put};
use crate::error::{Error, Result};
use crate::store::owners::{Membership, Organization, User};
use crate::store::{Committed, Fact, Outcome, Store, Touched, Tx, environments, owners};

/// Most users named in one change of an organization's members.
pub const MEMBERS_MAX: usize = 500;
/// Memberships that one transaction ends when an organization is made anew: about 20 ms of work
/// on PostgreSQL, a fifth of the time for which anybody may hold the store's lock.
const ENDED_MAX: i64 = 1_000;

/// What a new organization shall be.
#[derive(Debug, Clone)]
pub struct NewOrganization {
    /// The identity provider's code; absent, one is made.
    pub org: Option<OrgCode>,
    /// Its name.
    pub name: String,
    /// A short public name.
    pub handle: Option<String>,
    /// An id of another system.
    pub external_id: Option<String>,
}

/// Makes an organization, or makes a deleted one anew.
///
/// # Errors
/// `Conflict` when the code, the handle or the external id is another live organization's.
pub async fn create(
    store: &Store,
    env: EnvId,
    context: &Context,
    new: NewOrganization,
) -> Result<Committed<OrgCode>> {
    if let Some(org) = &new.org {
        part_from_past(store, env, context, org).await?;
    }
    store
        .write(env, context, Action::OrganizationCreated, move |tx| {
            Box::pin(async move {
                let org = prepare(tx, env, new)?;
                let mut fact = fact(&org.org);
                match owners::find_org(&mut tx.conn, env, &org.org).await? {
                    None => owners::insert_org(&mut tx.conn, &org).await?,
                    Some(former) if former.deleted_at.is_some() => {
                        owners::restore_org(&mut tx.conn, &org).await?;
                        end_memberships(tx, env, &org.org, i64::MAX, &mut fact).await?;
                        fact.before = Some(json!({ "deleted": true }));
                    }
                    Some(_) => {
                        let public = format!("there is an organization `{}` already", org.org);
                        return Err(Error::conflict("ORGANIZATION_EXISTS", public));
                    }
                }
                fact.after = Some(snapshot(&org));
                Ok(Outcome::Changed(org.org, fact))
            })
        })
        .await
}

fn prepare(tx: &Tx, env: EnvId, new: NewOrganization) -> Result<Organization> {
    let org = match new.org {
        Some(org) => org,
        None => {
            let digits = u128::from_be_bytes(tx.entropy.id(tx.now));
            OrgCode::parse(&format!("org_{digits:032x}"))
                .ok_or_else(|| Error::internal("a generated organization code is not one"))?
        }
    };
    Ok(Organization {
        env,
        org,
        name: new.name,
        handle: new.handle,
        external_id: new.external_id,
        created_at: tx.now,
        suspended_at: None,
        deleted_at: None,
        revoked_up_to: 0,
        changed_seq: tx.seq(),
    })
}

/// Ends the memberships that a deleted organization had: deleting did not, so as not to depend on
/// their number, and being made anew must not bring them back.
///
/// They are ended in short transactions of their own before the organization exists again; nobody
/// can join a deleted one, so that next to nothing is left for the transaction that makes it.
async fn part_from_past(store: &Store, env: EnvId, context: &Context, org: &OrgCode) -> Result<()> {
    let mut conn = store.read().await?;
    let found = owners::find_org(&mut conn, env, org).await?;
    drop(conn);
    if found.is_none_or(|org| org.deleted_at.is_none()) {
        return Ok(());
    }
    // The caller's idempotency key is for the organization, not for what goes before it.
    let context = Context { idempotency: None, ..context.clone() };
    loop {
        let org = org.clone();
        let ended = store
            .write(env, &context, Action::MembersUpdated, move |tx| {
                Box::pin(async move {
                    let found = owners::find_org(&mut tx.conn, env, &org).await?;
                    let Some(found) = found.filter(|org| org.deleted_at.is_some()) else {
                        return Ok(Outcome::Reached(0, 0));
                    };
                    let mut fact = Fact { touched: Vec::new(), ..fact(&org) };
                    let ended = end_memberships(tx, env, &org, ENDED_MAX, &mut fact).await?;
                    if ended == 0 {
                        return Ok(Outcome::Reached(0, found.changed_seq));
                    }
                    fact.after = Some(json!({ "members_ended": ended }));
                    Ok(Outcome::Changed(ended, fact))
                })
            })
            .await?;
        if ended.value < ENDED_MAX {
            return Ok(());
        }
    }
}

async fn end_memberships(
    tx: &mut Tx,
    env: EnvId,
    org: &OrgCode,
    most: i64,
    fact: &mut Fact,
) -> Result<i64> {
    let (now, seq) = (tx.now, tx.seq());
    let members = owners::some_members(&mut tx.conn, env, org, most).await?;
    owners::leave(&mut tx.conn, env, org, &members, now, seq).await?;
    let ended = i64::try_from(members.len()).unwrap_or(i64::MAX);
    fact.touched.extend(members.into_iter().map(|user| Touched::Membership(org.clone(), user)));
    Ok(ended)
}

/// What changes of an organization; `None` leaves a field as it is, `Some(None)` clears it.
#[derive(Debug, Default, Clone)]
pub struct OrganizationPatch {
    /// Another name.
    pub name: Option<String>,
    /// Another short public name.
    pub handle: Option<Option<String>>,
    /// Another id of another system.
    pub external_id: Option<Option<String>>,
    /// Suspended (`true`) or restored (`false`).
    pub suspended: Option<bool>,
}

/// Changes, suspends or restores an organization; returns what it is now.
///
/// # Errors
/// `NotFound`, also for a deleted one; `Conflict` when the handle or the external id is another
/// live organization's.
pub async fn update(
    store: &Store,
    env: EnvId,
    context: &Context,
    org: OrgCode,
    patch: OrganizationPatch,
) -> Result<Committed<Organization>> {
    store
        .write(env, context, Action::OrganizationUpdated, move |tx| {
            Box::pin(async move {
                let mut found = live(tx, env, &org).await?;
                let before = snapshot(&found);
                found.name = patch.name.unwrap_or(found.name);
                found.handle = patch.handle.unwrap_or(found.handle);
                found.external_id = patch.external_id.unwrap_or(found.external_id);
                match patch.suspended {
                    Some(true) => found.suspended_at = found.suspended_at.or(Some(tx.now)),
                    Some(false) => found.suspended_at = None,
                    None => {}
                }
                let after = snapshot(&found);
                if before == after {
                    let seq = found.changed_seq;
                    return Ok(Outcome::Reached(found, seq));
                }
                found.changed_seq = tx.seq();
                owners::update_org(&mut tx.conn, &found).await?;
                let fact = Fact { before: Some(before), after: Some(after), ..fact(&org) };
                Ok(Outcome::Changed(found, fact))
            })
        })
        .await
}

/// Deletes an organization and revokes its keys, and those that users hold inside it, for good.
/// A repeated call is told of the change that did it.
///
/// # Errors
/// `NotFound` for an organization that never was.
pub async fn delete(
    store: &Store,
    env: EnvId,
    context: &Context,
    org: OrgCode,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::OrganizationDeleted, move |tx| {
            Box::pin(async move {
                let found = owners::find_org(&mut tx.conn, env, &org)
                    .await?
                    .ok_or_else(|| Error::not_found("organization"))?;
                let (now, seq) = (tx.now, tx.seq());
                if !owners::delete_org(&mut tx.conn, env, &org, now, seq).await? {
                    return Ok(Outcome::Reached((), found.changed_seq));
                }
                let after = json!({ "deleted": true });
                let before = Some(snapshot(&found));
                Ok(Outcome::Changed((), Fact { before, after: Some(after), ..fact(&org) }))
            })
        })
        .await
}

/// Whether one user shall belong to an organization.
#[derive(Debug, Clone)]
pub struct MemberChange {
    /// The user.
    pub user: UserId,
    /// Joins or stays (`true`), or leaves (`false`).
    pub member: bool,
}

/// What became of the users named in a change of members. A user who was to leave and was no
/// member is in none of the lists.
#[derive(Debug, Default, Clone)]
pub struct MembersChanged {
    /// Members since this change.
    pub added: Vec<UserId>,
    /// Members before and after it.
    pub kept: Vec<UserId>,
    /// Members before it.
    pub removed: Vec<UserId>,
}

/// Lets users join and leave an organization, all or none of them; at most [`MEMBERS_MAX`].
/// A user unknown so far is registered where the environment allows it.
///
/// # Errors
/// `NotFound` for the organization; `Invalid` for a user who was deleted, who is unknown and may
/// not be registered, or who is to join and to leave at once.
pub async fn change_members(
    store: &Store,
    env: EnvId,
    context: &Context,
    org: OrgCode,
    changes: Vec<MemberChange>,
) -> Result<Committed<MembersChanged>> {
    if changes.len() > MEMBERS_MAX {
        let public = format!("`users`: at most {MEMBERS_MAX} in one call");
        return Err(Error::invalid("TOO_MANY_USERS", public));
    }
    let changes = distinct(changes)?;
    store
        .write(env, context, Action::MembersUpdated, move |tx| {
            Box::pin(async move {
                let found = live(tx, env, &org).await?;
                let ids: Vec<UserId> = changes.iter().map(|change| change.user.clone()).collect();
                let memberships = owners::memberships_among(&mut tx.conn, env, &org, &ids).await?;
                let reached = memberships.iter().map(|membership| membership.changed_seq).max();
                let strangers = check_users(tx, env, &changes).await?;
                let outcome = sort_out(changes, &memberships);
                let (now, seq) = (tx.now, tx.seq());
                if outcome.added.is_empty() && outcome.removed.is_empty() {
                    let reached = reached.unwrap_or(0).max(found.changed_seq);
                    return Ok(Outcome::Reached(outcome, reached));
                }
                for user in &strangers {
                    owners::register_user(&mut tx.conn, env, user, now, seq).await?;
                }
                owners::join(&mut tx.conn, env, &org, &outcome.added, now, seq).await?;
                owners::leave(&mut tx.conn, env, &org, &outcome.removed, now, seq).await?;
                let fact = members_fact(&org, &outcome, strangers);
                Ok(Outcome::Changed(outcome, fact))
            })
        })
        .await
}

/// Each user once; a user who is to join and to leave at once is refused.
fn distinct(changes: Vec<MemberChange>) -> Result<Vec<MemberChange>> {
    let mut seen = HashMap::with_capacity(changes.len());
    let mut distinct = Vec::with_capacity(changes.len());
    for change in changes {
        match seen.insert(change.user.clone(), change.member) {
            None => distinct.push(change),
            Some(member) if member == change.member => {}
            Some(_) => {
                let public = "`users`: one user is to join and to leave at once";
                return Err(Error::invalid("CONTRADICTORY_USERS", public));
            }
        }
    }
    Ok(distinct)
}

/// Checks that the users named may join or leave; returns those to be registered.
async fn check_users(tx: &mut Tx, env: EnvId, changes: &[MemberChange]) -> Result<Vec<UserId>> {
    let ids: Vec<UserId> = changes.iter().map(|change| change.user.clone()).collect();
    let users: HashMap<UserId, User> = owners::users_among(&mut tx.conn, env, &ids)
        .await?
        .into_iter()
        .map(|user| (user.user.clone(), user))
        .collect();
    let environment = environments::find(&mut tx.conn, env)
        .await?
        .ok_or_else(|| Error::not_found("environment"))?;
    let mut strangers = Vec::new();
    for change in changes {
        let id = &change.user;
        match users.get(id) {
            Some(user) if user.deleted_at.is_some() => {
                let public = "`users`: a user was deleted; create the user again first";
                return Err(Error::invalid("DELETED_USER", public));
            }
            Some(_) => {}
            None if change.member && environment.user_registration => strangers.push(id.clone()),
            None => {
                let public = "`users`: there is no such user";
                return Err(Error::invalid("UNKNOWN_USER", public));
            }
        }
    }
    Ok(strangers)
}

/// Sorts users by what the change means for them.
fn sort_out(changes: Vec<MemberChange>, memberships: &[Membership]) -> MembersChanged {
    let present = memberships.iter().filter(|membership| membership.left_at.is_none());
    let present: HashSet<&UserId> = present.map(|membership| &membership.user).collect();
    let mut outcome = MembersChanged::default();
    for MemberChange { user, member } in changes {
        match (present.contains(&user), member) {
            (false, true) => outcome.added.push(user),
            (true, true) => outcome.kept.push(user),
            (true, false) => outcome.removed.push(user),
            (false, false) => {}
        }
    }
    outcome
}

fn members_fact(org: &OrgCode, outcome: &MembersChanged, strangers: Vec<UserId>) -> Fact {
    let texts = |users: &[UserId]| users.iter().map(ToString::to_string).collect::<Vec<_>>();
    let changed = || outcome.added.iter().chain(&outcome.removed);
    let mut touched: Vec<Touched> =
        changed().map(|user| Touched::Membership(org.clone(), user.clone())).collect();
    let mut after = json!({ "joined": texts(&outcome.added), "left": texts(&outcome.removed) });
    if !strangers.is_empty() {
        put(&mut after, "registered", json!(texts(&strangers)));
        touched.extend(strangers.into_iter().map(Touched::User));
    }
    let mut only = changed();
    let user = only.next().filter(|_| only.next().is_none()).map(ToString::to_string);
    Fact { user, after: Some(after), touched, ..fact(org) }
}

/// Ends one membership. A repeated call is told of the change that did it.
///
/// # Errors
/// `NotFound` when the organization does not exist or the user never was a member.
pub async fn remove_member(
    store: &Store,
    env: EnvId,
    context: &Context,
    org: OrgCode,
    user: UserId,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::MembersUpdated, move |tx| {
            Box::pin(async move {
                live(tx, env, &org).await?;
                let user = std::slice::from_ref(&user);
                let found = owners::memberships_among(&mut tx.conn, env, &org, user).await?;
                let Some(membership) = found.first() else {
                    return Err(Error::not_found("member"));
                };
                if membership.left_at.is_some() {
                    return Ok(Outcome::Reached((), membership.changed_seq));
                }
                let (now, seq) = (tx.now, tx.seq());
                owners::leave(&mut tx.conn, env, &org, user, now, seq).await?;
                let outcome = MembersChanged { removed: user.to_vec(), ..Default::default() };
                Ok(Outcome::Changed((), members_fact(&org, &outcome, Vec::new())))
            })
        })
        .await
}

async fn live(tx: &mut Tx, env: EnvId, org: &OrgCode) -> Result<Organization> {
    owners::find_org(&mut tx.conn, env, org)
        .await?
        .filter(|org| org.deleted_at.is_none())
        .ok_or_else(|| Error::not_found("organization"))
}

fn fact(org: &OrgCode) -> Fact {
    Fact {
        target_kind: "organization",
        target_id: org.to_string(),
        org: Some(org.to_string()),
        touched: vec![Touched::Organization(org.clone())],
        ..Fact::default()
    }
}

/// What the audit log keeps of an organization's state.
fn snapshot(org: &Organization) -> Value {
    json!({
        "name": org.name,
        "handle": org.handle,
        "external_id": org.external_id,
        "suspended": org.suspended_at.is_some(),
    })
}
