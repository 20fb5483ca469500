//! `keyward user`: users, people who can own keys.

use clap::Subcommand;
use keyward_core::{OrgCode, UserId};
use serde_json::{Value, json};

use super::input::{self, LIMIT, cut};
use super::session::Session;
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::ops::users::{self as changes, NewUser, UserPatch};
use crate::store::owners::{self, User, UserFilter};

/// Most organizations that one user is shown with.
const ORGANIZATIONS_MAX: i64 = 500;

/// Commands about users.
#[derive(Subcommand)]
pub(super) enum UserCommand {
    /// List users
    List {
        /// Only users with this e-mail address
        #[arg(long)]
        email: Option<String>,
        /// Most to show
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(LIMIT))]
        limit: i64,
        /// Go on after this user
        #[arg(long, value_name = "USER_ID", default_value = "")]
        after: String,
    },
    /// Register a user
    Create {
        /// The identity provider's id [default: a new one]
        user_id: Option<String>,
        /// The id of another system
        #[arg(long)]
        provided_id: Option<String>,
        /// The e-mail address
        #[arg(long)]
        email: Option<String>,
        /// The user name
        #[arg(long)]
        username: Option<String>,
        /// The given name
        #[arg(long)]
        given_name: Option<String>,
        /// The family name
        #[arg(long)]
        family_name: Option<String>,
        /// An organization to join
        #[arg(long, value_name = "CODE")]
        org: Option<String>,
    },
    /// Show a user with their organizations
    Show {
        /// The user's id
        user_id: String,
    },
    /// Change a user; an empty text clears a field
    Update {
        /// The user's id
        user_id: String,
        /// Another id of another system
        #[arg(long)]
        provided_id: Option<String>,
        /// Another given name
        #[arg(long)]
        given_name: Option<String>,
        /// Another family name
        #[arg(long)]
        family_name: Option<String>,
    },
    /// Suspend a user; their keys are refused until they are restored
    Suspend {
        /// The user's id
        user_id: String,
    },
    /// Restore a suspended user
    Restore {
        /// The user's id
        user_id: String,
    },
    /// Delete a user and revoke their keys for good
    Delete {
        /// The user's id
        user_id: String,
    },
}

/// Carries out a command about users.
pub(super) async fn run(command: UserCommand, session: &Session) -> Result<()> {
    match command {
        UserCommand::List { email, limit, after } => list(session, email, limit, &after).await,
        UserCommand::Create {
            user_id,
            provided_id,
            email,
            username,
            given_name,
            family_name,
            org,
        } => {
            let new = NewUser {
                user: user_id.as_deref().map(id).transpose()?,
                provided_id: input::name_if("provided_id", provided_id)?,
                email: email.map(address).transpose()?,
                username: input::name_if("username", username)?,
                given_name: input::name_if("given_name", given_name)?,
                family_name: input::name_if("family_name", family_name)?,
                org: org.as_deref().map(org_code).transpose()?,
            };
            create(session, new).await
        }
        UserCommand::Show { user_id } => show(session, &id(&user_id)?).await,
        UserCommand::Update { user_id, provided_id, given_name, family_name } => {
            let patch = UserPatch {
                provided_id: input::clearable("provided_id", provided_id)?,
                given_name: input::clearable("given_name", given_name)?,
                family_name: input::clearable("family_name", family_name)?,
                suspended: None,
            };
            update(session, id(&user_id)?, patch, "changed").await
        }
        UserCommand::Suspend { user_id } => {
            update(session, id(&user_id)?, suspended(true), "suspended; their keys are refused")
                .await
        }
        UserCommand::Restore { user_id } => {
            update(session, id(&user_id)?, suspended(false), "restored").await
        }
        UserCommand::Delete { user_id } => delete(session, id(&user_id)?).await,
    }
}

fn suspended(suspended: bool) -> UserPatch {
    UserPatch { suspended: Some(suspended), ..UserPatch::default() }
}

fn id(text: &str) -> Result<UserId> {
    input::id("a user, which is 1 to 255 visible characters", text, UserId::parse)
}

/// An organization's code.
pub(super) fn org_code(text: &str) -> Result<OrgCode> {
    input::id("an organization, which is 1 to 255 visible characters", text, OrgCode::parse)
}

/// An e-mail address: one @ between two texts without spaces. Whether anybody reads mail there is
/// the identity provider's business.
fn address(text: String) -> Result<String> {
    let text = input::name("email", text)?;
    let parts: Vec<&str> = text.split('@').collect();
    let good = matches!(parts.as_slice(), [a, b] if !a.is_empty() && !b.is_empty())
        && !text.chars().any(char::is_whitespace);
    if good {
        Ok(text)
    } else {
        Err(Error::invalid("BAD_EMAIL", "--email must be an e-mail address"))
    }
}

fn object(user: &User) -> Value {
    json!({
        "id": user.user.as_str(),
        "provided_id": user.provided_id,
        "email": user.email,
        "username": user.username,
        "first_name": user.given_name,
        "last_name": user.family_name,
        "is_suspended": user.suspended_at.is_some(),
        "created_on": rfc3339(user.created_at),
    })
}

async fn list(session: &Session, email: Option<String>, limit: i64, after: &str) -> Result<()> {
    let filter = UserFilter { emails: email.map(|email| vec![email]), ..UserFilter::default() };
    let mut conn = session.store.read().await?;
    let env = session.env();
    let mut found = owners::users_page(&mut conn, env, &filter, after, limit + 1).await?;
    let has_more = cut(&mut found, limit);
    let columns = [
        ("ID", "id"),
        ("E-MAIL", "email"),
        ("FIRST NAME", "first_name"),
        ("LAST NAME", "last_name"),
        ("SUSPENDED", "is_suspended"),
    ];
    session.out.list("users", found.iter().map(object).collect(), has_more, &columns)
}

async fn create(session: &Session, new: NewUser) -> Result<()> {
    let done = changes::create(&session.store, session.env(), &session.context, new).await?;
    let user = session.widened(done).await?;
    let sentence = format!("The user {user} is registered.");
    session.out.done(&json!({ "id": user.as_str(), "created": true }), &sentence)
}

async fn show(session: &Session, user: &UserId) -> Result<()> {
    let (mut conn, env) = (session.store.read().await?, session.env());
    let found = owners::find_user(&mut conn, env, user).await?;
    let found =
        found.filter(|user| user.deleted_at.is_none()).ok_or_else(|| Error::not_found("user"))?;
    let orgs = owners::organizations_of(&mut conn, env, user, ORGANIZATIONS_MAX).await?;
    let mut object = object(&found);
    if let Some(fields) = object.as_object_mut() {
        let orgs = orgs.iter().map(|org| json!(org.as_str())).collect();
        fields.insert("organizations".to_owned(), Value::Array(orgs));
    }
    session.out.object(&object)
}

async fn update(session: &Session, user: UserId, patch: UserPatch, verb: &str) -> Result<()> {
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::update(store, env, context, user, patch).await?;
    let user = session.narrowed(done).await?;
    session.out.done(&object(&user), &format!("The user {} is {verb}.", user.user))
}

async fn delete(session: &Session, user: UserId) -> Result<()> {
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::delete(store, env, context, user.clone()).await?;
    session.narrowed(done).await?;
    let sentence = format!("The user {user} is deleted and their keys are revoked.");
    session.out.done(&json!({ "id": user.as_str(), "deleted": true }), &sentence)
}
