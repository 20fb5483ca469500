//! `keyward org`: organizations, and who is a member.

use clap::Subcommand;
use keyward_core::{OrgCode, UserId};
use serde_json::{Value, json};

use super::input::{self, LIMIT, cut};
use super::session::Session;
use super::user::org_code;
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::ops::organizations::{
    self as changes, MEMBERS_MAX, MemberChange, NewOrganization, OrganizationPatch,
};
use crate::store::owners::{self, Member, Organization};

/// Commands about organizations.
#[derive(Subcommand)]
pub(super) enum OrgCommand {
    /// List organizations
    List {
        /// Most to show
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(LIMIT))]
        limit: i64,
        /// Go on after this organization
        #[arg(long, value_name = "CODE", default_value = "")]
        after: String,
    },
    /// Make an organization
    Create {
        /// Its name
        name: String,
        /// The identity provider's code [default: a new one]
        #[arg(long)]
        code: Option<String>,
        /// A short public name
        #[arg(long)]
        handle: Option<String>,
        /// The id of another system
        #[arg(long)]
        external_id: Option<String>,
    },
    /// Show an organization
    Show {
        /// Its code
        code: String,
    },
    /// Change an organization; an empty text clears a field
    Update {
        /// Its code
        code: String,
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another short public name
        #[arg(long)]
        handle: Option<String>,
        /// Another id of another system
        #[arg(long)]
        external_id: Option<String>,
    },
    /// Suspend an organization; its keys are refused until it is restored
    Suspend {
        /// Its code
        code: String,
    },
    /// Restore a suspended organization
    Restore {
        /// Its code
        code: String,
    },
    /// Delete an organization and revoke its keys for good
    Delete {
        /// Its code
        code: String,
    },
    /// Members of an organization
    #[command(subcommand)]
    Member(MemberCommand),
}

/// Commands about the members of an organization.
#[derive(Subcommand)]
pub(super) enum MemberCommand {
    /// List members
    List {
        /// The organization's code
        code: String,
        /// Most to show
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(LIMIT))]
        limit: i64,
        /// Go on after this user
        #[arg(long, value_name = "USER_ID", default_value = "")]
        after: String,
    },
    /// Let users join an organization
    Add {
        /// The organization's code
        code: String,
        /// The users' ids
        #[arg(required = true, num_args = 1..=MEMBERS_MAX)]
        user_ids: Vec<String>,
    },
    /// Let users leave an organization; their keys inside it are refused
    Remove {
        /// The organization's code
        code: String,
        /// The users' ids
        #[arg(required = true, num_args = 1..=MEMBERS_MAX)]
        user_ids: Vec<String>,
    },
}

/// Carries out a command about organizations.
pub(super) async fn run(command: OrgCommand, session: &Session) -> Result<()> {
    match command {
        OrgCommand::List { limit, after } => list(session, limit, &after).await,
        OrgCommand::Create { name, code, handle, external_id } => {
            let new = NewOrganization {
                org: code.as_deref().map(org_code).transpose()?,
                name: input::name("name", name)?,
                handle: input::name_if("handle", handle)?,
                external_id: input::name_if("external_id", external_id)?,
            };
            create(session, new).await
        }
        OrgCommand::Show { code } => show(session, &org_code(&code)?).await,
        OrgCommand::Update { code, name, handle, external_id } => {
            let patch = OrganizationPatch {
                name: input::name_if("name", name)?,
                handle: input::clearable("handle", handle)?,
                external_id: input::clearable("external_id", external_id)?,
                suspended: None,
            };
            update(session, org_code(&code)?, patch, "changed").await
        }
        OrgCommand::Suspend { code } => {
            update(session, org_code(&code)?, suspended(true), "suspended; its keys are refused")
                .await
        }
        OrgCommand::Restore { code } => {
            update(session, org_code(&code)?, suspended(false), "restored").await
        }
        OrgCommand::Delete { code } => delete(session, org_code(&code)?).await,
        OrgCommand::Member(command) => member(command, session).await,
    }
}

async fn member(command: MemberCommand, session: &Session) -> Result<()> {
    match command {
        MemberCommand::List { code, limit, after } => {
            list_members(session, &org_code(&code)?, limit, &after).await
        }
        MemberCommand::Add { code, user_ids } => {
            change_members(session, org_code(&code)?, user_ids, true).await
        }
        MemberCommand::Remove { code, user_ids } => {
            change_members(session, org_code(&code)?, user_ids, false).await
        }
    }
}

fn suspended(suspended: bool) -> OrganizationPatch {
    OrganizationPatch { suspended: Some(suspended), ..OrganizationPatch::default() }
}

fn object(org: &Organization) -> Value {
    json!({
        "code": org.org.as_str(),
        "name": org.name,
        "handle": org.handle,
        "external_id": org.external_id,
        "is_suspended": org.suspended_at.is_some(),
        "created_on": rfc3339(org.created_at),
    })
}

async fn list(session: &Session, limit: i64, after: &str) -> Result<()> {
    let mut conn = session.store.read().await?;
    let mut found = owners::orgs_page(&mut conn, session.env(), after, limit + 1).await?;
    let has_more = cut(&mut found, limit);
    let columns =
        [("CODE", "code"), ("NAME", "name"), ("HANDLE", "handle"), ("SUSPENDED", "is_suspended")];
    session.out.list("organizations", found.iter().map(object).collect(), has_more, &columns)
}

async fn create(session: &Session, new: NewOrganization) -> Result<()> {
    let done = changes::create(&session.store, session.env(), &session.context, new).await?;
    let org = session.widened(done).await?;
    let sentence = format!("The organization {org} is made.");
    session.out.done(&json!({ "code": org.as_str() }), &sentence)
}

async fn live(session: &Session, org: &OrgCode) -> Result<Organization> {
    let found = owners::find_org(&mut session.store.read().await?, session.env(), org).await?;
    found.filter(|org| org.deleted_at.is_none()).ok_or_else(|| Error::not_found("organization"))
}

async fn show(session: &Session, org: &OrgCode) -> Result<()> {
    session.out.object(&object(&live(session, org).await?))
}

async fn update(
    session: &Session,
    org: OrgCode,
    patch: OrganizationPatch,
    verb: &str,
) -> Result<()> {
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::update(store, env, context, org, patch).await?;
    let org = session.narrowed(done).await?;
    session.out.done(&object(&org), &format!("The organization {} is {verb}.", org.org))
}

async fn delete(session: &Session, org: OrgCode) -> Result<()> {
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::delete(store, env, context, org.clone()).await?;
    session.narrowed(done).await?;
    let sentence = format!("The organization {org} is deleted and its keys are revoked.");
    session.out.done(&json!({ "code": org.as_str(), "deleted": true }), &sentence)
}

fn member_object(member: &Member) -> Value {
    json!({
        "id": member.user_id,
        "email": member.email,
        "first_name": member.given_name,
        "last_name": member.family_name,
        "joined_on": rfc3339(member.joined_at),
        "is_suspended": member.suspended_at.is_some(),
    })
}

async fn list_members(session: &Session, org: &OrgCode, limit: i64, after: &str) -> Result<()> {
    live(session, org).await?;
    let mut conn = session.store.read().await?;
    let mut found = owners::members_page(&mut conn, session.env(), org, after, limit + 1).await?;
    let has_more = cut(&mut found, limit);
    let columns =
        [("ID", "id"), ("E-MAIL", "email"), ("JOINED", "joined_on"), ("SUSPENDED", "is_suspended")];
    let rows = found.iter().map(member_object).collect();
    session.out.list("organization_users", rows, has_more, &columns)
}

async fn change_members(
    session: &Session,
    org: OrgCode,
    user_ids: Vec<String>,
    member: bool,
) -> Result<()> {
    let change = |text: &String| {
        let user = input::id("a user, which is 1 to 255 visible characters", text, UserId::parse)?;
        Ok(MemberChange { user, member })
    };
    let wishes = user_ids.iter().map(change).collect::<Result<Vec<_>>>()?;
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::change_members(store, env, context, org.clone(), wishes).await?;
    let changed = session.narrowed(done).await?;
    let ids = |users: &[UserId]| users.iter().map(UserId::to_string).collect::<Vec<_>>();
    let object = json!({
        "code": org.as_str(),
        "users_added": ids(&changed.added),
        "users_updated": ids(&changed.kept),
        "users_removed": ids(&changed.removed),
    });
    let (added, removed) = (changed.added.len(), changed.removed.len());
    let sentence = format!("Joined {org}: {added}. Left it: {removed}.");
    session.out.done(&object, &sentence)
}
