//! What a new key refers to, checked: its API, its scopes, its owner.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use keyward_core::{ApiId, EnvId, KeyId, OrgCode, Owner, Prefix, ScopeId, UserId};

use crate::error::{Error, Result};
use crate::store::apis::Scope;
use crate::store::environments::Environment;
use crate::store::keys::Key;
use crate::store::{Fact, Touched, Tx, apis, environments, owners};

/// Whom a new key is for, as asked.
#[derive(Debug, Clone)]
pub enum NewOwner {
    /// A user, perhaps inside an organization.
    User(UserId, Option<OrgCode>),
    /// An organization.
    Org(OrgCode),
    /// The environment itself.
    Environment,
}

/// What a new key shall be.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// A JSON object of strings, as text.
    pub metadata: Option<String>,
    /// Whom it is for.
    pub owner: NewOwner,
    /// The API it is for.
    pub api: ApiId,
    /// Ids or keys of that API's scopes.
    pub scopes: Vec<String>,
    /// Not good before, µs since the epoch.
    pub not_before: Option<i64>,
    /// Not good from then on.
    pub expires_at: Option<i64>,
}

/// What new keys refer to, read once in a change: an import names the same API a thousand times.
#[derive(Default)]
pub(super) struct Lookups {
    environment: Option<Environment>,
    /// Live APIs, with their scopes once somebody asked for one.
    apis: HashMap<ApiId, Option<Vec<Scope>>>,
    users: HashMap<UserId, Standing>,
    /// Users to be registered, in the order in which they were named, and by which change.
    strangers: Vec<(UserId, i64)>,
}

/// What is known of a user who shall own a key.
#[derive(Clone, Copy)]
enum Standing {
    Unknown,
    Good,
    Suspended,
    Deleted,
}

impl Lookups {
    /// Reads the users that `new` keys are for, many at a time.
    pub(super) async fn read_users(
        &mut self,
        tx: &mut Tx,
        env: EnvId,
        new: impl Iterator<Item = &NewKey>,
    ) -> Result<()> {
        for key in new {
            if let NewOwner::User(user, _) = &key.owner {
                self.users.insert(user.clone(), Standing::Unknown);
            }
        }
        let ids: Vec<UserId> = self.users.keys().cloned().collect();
        for user in owners::users_among(&mut tx.conn, env, &ids).await? {
            let standing = if user.deleted_at.is_some() {
                Standing::Deleted
            } else if user.suspended_at.is_some() {
                Standing::Suspended
            } else {
                Standing::Good
            };
            self.users.insert(user.user, standing);
        }
        Ok(())
    }

    /// Registers the users that were unknown.
    pub(super) async fn register_strangers(&mut self, tx: &mut Tx, env: EnvId) -> Result<()> {
        owners::register_users(&mut tx.conn, env, &self.strangers, tx.now).await?;
        self.strangers.clear();
        Ok(())
    }

    async fn environment(&mut self, tx: &mut Tx, env: EnvId) -> Result<Environment> {
        if let Some(known) = &self.environment {
            return Ok(known.clone());
        }
        let found = environments::find(&mut tx.conn, env)
            .await?
            .ok_or_else(|| Error::not_found("environment"))?;
        self.environment = Some(found.clone());
        Ok(found)
    }

    /// Finds the scopes of `api` that are asked for, by id or by key, each once.
    async fn scopes(
        &mut self,
        tx: &mut Tx,
        env: EnvId,
        api: ApiId,
        asked: &[String],
    ) -> Result<Vec<ScopeId>> {
        let known = match self.apis.entry(api) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if apis::find(&mut tx.conn, env, api).await?.is_none() => {
                let public = format!("`api_id`: there is no API {api}");
                return Err(Error::invalid("UNKNOWN_API", public));
            }
            Entry::Vacant(unknown) => unknown.insert(None),
        };
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        if known.is_none() {
            *known = Some(apis::scopes(&mut tx.conn, env, api).await?);
        }
        resolve_scopes(known.as_deref().unwrap_or_default(), asked)
    }
}

/// Checks what a new key refers to and makes its row, still without the ends of its secret. The
/// users of `new` were read before; those to be registered are kept for later.
pub(super) async fn prepare(
    tx: &mut Tx,
    env: EnvId,
    new: NewKey,
    created_by: Option<String>,
    fact: &mut Fact,
    lookups: &mut Lookups,
) -> Result<(Key, Prefix)> {
    let environment = lookups.environment(tx, env).await?;
    if new.expires_at.is_some_and(|at| at <= tx.now) {
        return Err(Error::invalid("EXPIRES_IN_PAST", "`expires_on` must be in the future"));
    }
    if let (Some(from), Some(to)) = (new.not_before, new.expires_at)
        && from >= to
    {
        let public = "`not_before` must be earlier than `expires_on`";
        return Err(Error::invalid("NEVER_VALID", public));
    }
    let scopes = lookups.scopes(tx, env, new.api, &new.scopes).await?;
    let registration = environment.user_registration;
    let owner = resolve_owner(tx, env, new.owner, registration, fact, lookups).await?;
    let prefix = environment.key_prefixes.first().and_then(|text| Prefix::parse(text));
    let prefix = prefix.ok_or_else(|| Error::internal("the environment has no key prefix"))?;
    let key = Key {
        key: KeyId::from_bytes(tx.entropy.id(tx.now)),
        env,
        name: new.name,
        description: new.description,
        metadata: new.metadata,
        owner,
        api: new.api,
        scopes,
        issued_seq: tx.seq(),
        not_before: new.not_before,
        expires_at: new.expires_at,
        disabled_at: None,
        imported: false,
        key_prefix: String::new(),
        key_suffix: String::new(),
        created_at: tx.now,
        created_by,
        changed_seq: tx.seq(),
        status: "active".to_owned(),
    };
    Ok((key, prefix))
}

/// The scopes asked for. What does not exist is named by its place: its text may be a secret that
/// was put into the wrong field.
fn resolve_scopes(existing: &[Scope], asked: &[String]) -> Result<Vec<ScopeId>> {
    let mut found = Vec::with_capacity(asked.len());
    for (position, text) in asked.iter().enumerate() {
        let id = ScopeId::parse(text);
        let scope = existing.iter().find(|scope| Some(scope.scope) == id || scope.key == *text);
        let Some(scope) = scope else {
            let public = format!("`scope_ids[{position}]`: this API has no such scope");
            return Err(Error::invalid("UNKNOWN_SCOPE", public));
        };
        if !found.contains(&scope.scope) {
            found.push(scope.scope);
        }
    }
    Ok(found)
}

/// Finds the owner asked for; an unknown user is to be registered where the environment allows it.
async fn resolve_owner(
    tx: &mut Tx,
    env: EnvId,
    asked: NewOwner,
    registration: bool,
    fact: &mut Fact,
    lookups: &mut Lookups,
) -> Result<Owner> {
    let (user, org) = match asked {
        NewOwner::Environment => return Ok(Owner::Environment),
        NewOwner::Org(org) => (None, Some(org)),
        NewOwner::User(user, org) => (Some(user), org),
    };
    if let Some(org) = &org {
        fact.org = Some(org.to_string());
        let found = owners::find_org(&mut tx.conn, env, org).await?;
        let Some(found) = found.filter(|org| org.deleted_at.is_none()) else {
            let public = "`org_code`: there is no such organization";
            return Err(Error::invalid("UNKNOWN_ORGANIZATION", public));
        };
        if found.suspended_at.is_some() {
            return Err(Error::conflict("OWNER_SUSPENDED", "the organization is suspended"));
        }
    }
    let Some(user) = user else {
        let org = org.ok_or_else(|| Error::internal("a key without an owner was asked for"))?;
        return Ok(Owner::Org(org));
    };
    fact.user = Some(user.to_string());
    let is_stranger = match lookups.users.get(&user).copied().unwrap_or(Standing::Unknown) {
        Standing::Good => false,
        Standing::Deleted => {
            let public = "`user_id`: this user was deleted; create the user again first";
            return Err(Error::invalid("DELETED_USER", public));
        }
        Standing::Suspended => {
            return Err(Error::conflict("OWNER_SUSPENDED", "the user is suspended"));
        }
        Standing::Unknown if registration => true,
        Standing::Unknown => {
            let public = "`user_id`: there is no such user";
            return Err(Error::invalid("UNKNOWN_USER", public));
        }
    };
    if let Some(org) = &org
        && !owners::is_member(&mut tx.conn, env, org, &user).await?
    {
        let public = "`user_id`: the user is not a member of this organization";
        return Err(Error::invalid("NOT_A_MEMBER", public));
    }
    // Only now: a key that is not issued must not leave a user behind.
    if is_stranger {
        lookups.users.insert(user.clone(), Standing::Good);
        lookups.strangers.push((user.clone(), tx.seq()));
        fact.touched.push(Touched::User(user.clone()));
    }
    Ok(match org {
        Some(org) => Owner::UserInOrg(user, org),
        None => Owner::User(user),
    })
}
