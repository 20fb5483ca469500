//! `keyward api`: APIs that the operator protects, and their scopes.

use clap::Subcommand;
use keyward_core::{ApiId, ScopeId};
use serde_json::{Value, json};

use super::input;
use super::session::Session;
use crate::error::{Error, Result};
use crate::ops::apis as changes;
use crate::store::apis::{Api, Scope};
use crate::store::{apis, applications};

/// Longest audience and longest scope key in characters, as over HTTP.
const AUDIENCE_MAX: usize = 255;

/// Commands about APIs. An API is named by its id or its audience.
#[derive(Subcommand)]
pub(super) enum ApiCommand {
    /// List APIs
    List,
    /// Register an API
    Create {
        /// Its audience, such as https://api.example.com
        audience: String,
        /// Its name [default: the audience]
        #[arg(long)]
        name: Option<String>,
        /// A scope to add to it (repeatable)
        #[arg(long, value_name = "SCOPE")]
        scope: Vec<String>,
    },
    /// Show an API with its scopes and applications
    Show {
        /// Its id or audience
        api: String,
    },
    /// Delete an API for good; its keys are revoked by that
    Delete {
        /// Its id or audience
        api: String,
    },
    /// Scopes of an API
    #[command(subcommand)]
    Scope(ScopeCommand),
}

/// Commands about the scopes of an API.
#[derive(Subcommand)]
pub(super) enum ScopeCommand {
    /// Add a scope
    Add {
        /// The API's id or audience
        api: String,
        /// What programs call it, such as read:profile
        key: String,
        /// What it allows, for people
        #[arg(long)]
        description: Option<String>,
    },
    /// Describe a scope anew
    Describe {
        /// The API's id or audience
        api: String,
        /// The scope's key or id
        scope: String,
        /// What it allows, for people; empty for nothing
        description: String,
    },
    /// Delete a scope for good; no key and no application holds it any longer
    Delete {
        /// The API's id or audience
        api: String,
        /// The scope's key or id
        scope: String,
    },
}

/// Carries out a command about APIs.
pub(super) async fn run(command: ApiCommand, session: &Session) -> Result<()> {
    match command {
        ApiCommand::List => list(session).await,
        ApiCommand::Create { audience, name, scope } => {
            create(session, audience, name, scope).await
        }
        ApiCommand::Show { api } => show(session, &api).await,
        ApiCommand::Delete { api } => session.deleted(delete(session, &api).await).await,
        ApiCommand::Scope(ScopeCommand::Add { api, key, description }) => {
            add_scope(session, &api, key, description).await
        }
        ApiCommand::Scope(ScopeCommand::Describe { api, scope, description }) => {
            describe_scope(session, &api, &scope, description).await
        }
        ApiCommand::Scope(ScopeCommand::Delete { api, scope }) => {
            session.deleted(delete_scope(session, &api, &scope).await).await
        }
    }
}

/// The API with this id or audience; without one, the management API.
pub(super) async fn find_api(session: &Session, named: Option<&str>) -> Result<Api> {
    let (mut conn, env) = (session.store.read().await?, session.env());
    let Some(named) = named else {
        let all = apis::all(&mut conn, env).await?;
        let management = all.into_iter().find(|api| api.is_management);
        return management.ok_or_else(|| Error::internal("there is no management API"));
    };
    let by_id = match ApiId::parse(named) {
        Some(id) => apis::find(&mut conn, env, id).await?,
        None => None,
    };
    let found = match by_id {
        Some(api) => Some(api),
        None => apis::by_audience(&mut conn, env, named).await?,
    };
    found.ok_or_else(|| Error::not_found("API"))
}

async fn find_scope(session: &Session, api: &Api, named: &str) -> Result<Scope> {
    let all = apis::scopes(&mut session.store.read().await?, session.env(), api.api).await?;
    let id = ScopeId::parse(named);
    let mut found = all.into_iter().filter(|one| one.key == named || Some(one.scope) == id);
    found.next().ok_or_else(|| Error::not_found("scope"))
}

fn object(api: &Api) -> Value {
    json!({
        "id": api.api.to_string(),
        "name": api.name,
        "audience": api.audience,
        "is_management_api": api.is_management,
    })
}

fn scope_object(scope: &Scope) -> Value {
    json!({
        "id": scope.scope.to_string(),
        "key": scope.key,
        "description": scope.description,
    })
}

async fn list(session: &Session) -> Result<()> {
    let found = apis::all(&mut session.store.read().await?, session.env()).await?;
    let columns = [
        ("ID", "id"),
        ("AUDIENCE", "audience"),
        ("NAME", "name"),
        ("MANAGEMENT", "is_management_api"),
    ];
    session.out.list("apis", found.iter().map(object).collect(), false, &columns)
}

async fn create(
    session: &Session,
    audience: String,
    name: Option<String>,
    scopes: Vec<String>,
) -> Result<()> {
    let audience = input::name("audience", audience)?;
    let name = input::name("name", name.unwrap_or_else(|| audience.clone()))?;
    let keys = scopes.into_iter().map(scope_key).collect::<Result<Vec<_>>>()?;
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let mut done = changes::create(store, env, context, name, audience.clone()).await?;
    let api = done.value;
    let mut added = Vec::new();
    for key in keys {
        let one = changes::create_scope(store, env, context, api, key.clone(), None).await?;
        added.push(json!({ "id": one.value.to_string(), "key": key, "description": null }));
        done = done.or_later(one.map(|_| api));
    }
    session.widened(done).await?;
    let object = json!({ "id": api.to_string(), "audience": audience, "scopes": added });
    session.out.done(&object, &format!("The API {audience} is registered as {api}."))
}

async fn show(session: &Session, named: &str) -> Result<()> {
    let api = find_api(session, Some(named)).await?;
    let (mut conn, env) = (session.store.read().await?, session.env());
    let scopes = apis::scopes(&mut conn, env, api.api).await?;
    let connected = applications::connected(&mut conn, env, api.api).await?;
    let apps: Vec<Value> = connected
        .iter()
        .map(|app| json!({ "id": app.app.to_string(), "name": app.name }))
        .collect();
    let mut object = object(&api);
    if let Some(fields) = object.as_object_mut() {
        let scopes = scopes.iter().map(scope_object).collect();
        fields.insert("scopes".to_owned(), Value::Array(scopes));
        fields.insert("applications".to_owned(), Value::Array(apps));
    }
    session.out.object(&object)
}

async fn delete(session: &Session, named: &str) -> Result<()> {
    let api = find_api(session, Some(named)).await?;
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::delete(store, env, context, api.api).await?;
    session.narrowed(done).await?;
    let object = json!({ "id": api.api.to_string(), "deleted": true });
    let sentence = format!("The API {} is deleted and its keys are revoked.", api.audience);
    session.out.done(&object, &sentence)
}

/// A scope's key: a name without white space, since tokens separate scopes by it.
fn scope_key(text: String) -> Result<String> {
    let key = input::name("scope", text)?;
    if key.chars().any(char::is_whitespace) || key.chars().count() > AUDIENCE_MAX {
        return Err(Error::invalid("BAD_SCOPE", "a scope's key holds no white space"));
    }
    Ok(key)
}

async fn add_scope(
    session: &Session,
    named: &str,
    key: String,
    description: Option<String>,
) -> Result<()> {
    let key = scope_key(key)?;
    let description = input::description(description)?.flatten();
    let api = find_api(session, Some(named)).await?;
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let text = description.clone();
    let done = changes::create_scope(store, env, context, api.api, key.clone(), text).await?;
    let scope = session.widened(done).await?;
    let scope = Scope { scope, api: api.api, key, description };
    let sentence = format!("The API {} has the scope {} now.", api.audience, scope.key);
    session.out.done(&scope_object(&scope), &sentence)
}

async fn describe_scope(
    session: &Session,
    api: &str,
    named: &str,
    description: String,
) -> Result<()> {
    let description = input::description(Some(description))?.flatten();
    let api = find_api(session, Some(api)).await?;
    let scope = find_scope(session, &api, named).await?;
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let (id, text) = (scope.scope, description.clone());
    let done = changes::describe_scope(store, env, context, api.api, id, Some(text)).await?;
    session.widened(done).await?;
    let sentence = format!("The scope {} is described anew.", scope.key);
    session.out.done(&scope_object(&Scope { description, ..scope }), &sentence)
}

async fn delete_scope(session: &Session, api: &str, named: &str) -> Result<()> {
    let api = find_api(session, Some(api)).await?;
    let scope = find_scope(session, &api, named).await?;
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::delete_scope(store, env, context, api.api, scope.scope).await?;
    session.narrowed(done).await?;
    let object = json!({ "id": scope.scope.to_string(), "deleted": true });
    session.out.done(&object, &format!("The scope {} is deleted.", scope.key))
}
