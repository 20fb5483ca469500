//! `keyward app`: applications, the machine-to-machine clients of the management API.

use clap::Subcommand;
use keyward_core::{ApiId, AppId};
use serde_json::{Value, json};

use super::api::find_api;
use super::input::{self, LIMIT, cut};
use super::session::Session;
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::lease::Settle;
use crate::ops::{apis as api_changes, applications as changes};
use crate::store::apis::{Api, Scope};
use crate::store::applications::Application;
use crate::store::{Committed, apis, applications};

/// Commands about applications.
#[derive(Subcommand)]
pub(super) enum AppCommand {
    /// List applications
    List {
        /// Most to show
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(LIMIT))]
        limit: i64,
        /// Go on after this application
        #[arg(long, value_name = "CLIENT_ID")]
        after: Option<String>,
    },
    /// Make an application and print its credentials, once
    Create {
        /// Its name
        name: String,
        /// Grant it every scope of the management API
        #[arg(long)]
        all_scopes: bool,
        /// Grant it this scope of the management API (repeatable)
        #[arg(long, value_name = "SCOPE", conflicts_with = "all_scopes")]
        scope: Vec<String>,
    },
    /// Show an application with its scopes
    Show {
        /// Its client id
        client_id: String,
    },
    /// Rename an application
    Rename {
        /// Its client id
        client_id: String,
        /// Its new name
        name: String,
    },
    /// Stop an application; its tokens stop working at once
    Disable {
        /// Its client id
        client_id: String,
    },
    /// Let a disabled application act again
    Enable {
        /// Its client id
        client_id: String,
    },
    /// Delete an application for good
    Delete {
        /// Its client id
        client_id: String,
    },
    /// Give an application a new client secret and print it, once
    RotateSecret {
        /// Its client id
        client_id: String,
        /// For how many seconds the present secret stays good
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        overlap: i64,
    },
    /// Grant an application scopes of an API
    Grant(Scopes),
    /// Take scopes of an API from an application
    Take(Scopes),
}

/// Scopes of one API for one application.
#[derive(clap::Args)]
pub(super) struct Scopes {
    /// Its client id
    client_id: String,
    /// The API's id or audience [default: the management API]
    #[arg(long)]
    api: Option<String>,
    /// A scope's key or id (repeatable)
    #[arg(long, required_unless_present = "all_scopes")]
    scope: Vec<String>,
    /// Every scope of the API
    #[arg(long, conflicts_with = "scope")]
    all_scopes: bool,
}

/// Carries out a command about applications.
pub(super) async fn run(command: AppCommand, session: &Session) -> Result<()> {
    match command {
        AppCommand::List { limit, after } => list(session, limit, after).await,
        AppCommand::Create { name, all_scopes, scope } => {
            create(session, name, all_scopes, scope).await
        }
        AppCommand::Show { client_id } => show(session, id(&client_id)?).await,
        AppCommand::Rename { client_id, name } => {
            let name = input::name("name", name)?;
            update(session, id(&client_id)?, Some(name), None, "renamed").await
        }
        AppCommand::Disable { client_id } => {
            update(session, id(&client_id)?, None, Some(false), "disabled").await
        }
        AppCommand::Enable { client_id } => {
            update(session, id(&client_id)?, None, Some(true), "enabled").await
        }
        AppCommand::Delete { client_id } => {
            session.deleted(delete(session, id(&client_id)?).await).await
        }
        AppCommand::RotateSecret { client_id, overlap } => {
            rotate_secret(session, id(&client_id)?, overlap).await
        }
        AppCommand::Grant(scopes) => grant(session, scopes, true).await,
        AppCommand::Take(scopes) => grant(session, scopes, false).await,
    }
}

fn id(text: &str) -> Result<AppId> {
    input::id("an application, which is 32 hex digits", text, AppId::parse)
}

fn object(app: &Application) -> Value {
    json!({
        "id": app.app.to_string(),
        "client_id": app.app.to_string(),
        "name": app.name,
        "type": "m2m",
        "is_active": app.disabled_at.is_none(),
        "created_on": rfc3339(app.created_at),
    })
}

async fn list(session: &Session, limit: i64, after: Option<String>) -> Result<()> {
    let after = after.map(|after| id(&after)).transpose()?.map_or([0; 16], |app| *app.bytes());
    let mut conn = session.store.read().await?;
    let mut found = applications::page(&mut conn, session.env(), after, limit + 1).await?;
    let has_more = cut(&mut found, limit);
    let columns = [
        ("CLIENT ID", "client_id"),
        ("NAME", "name"),
        ("ACTIVE", "is_active"),
        ("CREATED", "created_on"),
    ];
    session.out.list("applications", found.iter().map(object).collect(), has_more, &columns)
}

async fn create(
    session: &Session,
    name: String,
    all_scopes: bool,
    scopes: Vec<String>,
) -> Result<()> {
    let name = input::name("name", name)?;
    let (api, granted) = if all_scopes || !scopes.is_empty() {
        let api = find_api(session, None).await?;
        let granted = chosen(session, &api, all_scopes, &scopes).await?;
        (Some(api), granted)
    } else {
        (None, Vec::new())
    };
    let pepper = session.keyring().await?.secrets().current_pepper();
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::create(store, env, context, pepper, name).await?;
    let mut last = Committed { value: (), seq: done.seq, incarnation: done.incarnation };
    let (app, secret) = done.value;
    if let Some(api) = &api {
        last = connect_and_grant(session, api.api, app, &granted).await?;
    }
    session.widened(last).await?;
    session.out.object(&json!({
        "id": app.to_string(),
        "client_id": app.to_string(),
        "client_secret": *secret,
        "scopes": granted.iter().map(|scope| scope.key.as_str()).collect::<Vec<_>>(),
    }))
}

async fn show(session: &Session, app: AppId) -> Result<()> {
    let mut conn = session.store.read().await?;
    let found = applications::find(&mut conn, session.env(), app)
        .await?
        .ok_or_else(|| Error::not_found("application"))?;
    let connected = applications::connections_any_environment(&mut conn).await?;
    let grants = applications::grants_any_environment(&mut conn).await?;
    let mut held = Vec::new();
    for (_, api) in connected.iter().filter(|(one, _)| *one == app) {
        let scopes: Vec<&str> = grants
            .iter()
            .filter(|grant| grant.app == app && grant.api == *api)
            .map(|grant| grant.scope_key.as_str())
            .collect();
        held.push(json!({ "id": api.to_string(), "scopes": scopes }));
    }
    let mut object = object(&found);
    if let Some(fields) = object.as_object_mut() {
        fields.insert("apis".to_owned(), Value::Array(held));
    }
    session.out.object(&object)
}

async fn update(
    session: &Session,
    app: AppId,
    name: Option<String>,
    enabled: Option<bool>,
    verb: &str,
) -> Result<()> {
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::update(store, env, context, app, name, enabled).await?;
    let settle = if enabled == Some(true) { Settle::Widening } else { Settle::Narrowing };
    session.settle(done.stamp(), settle).await?;
    let found = applications::find(&mut store.read().await?, env, app)
        .await?
        .ok_or_else(|| Error::not_found("application"))?;
    session.out.done(&object(&found), &format!("The application {app} is {verb}."))
}

async fn delete(session: &Session, app: AppId) -> Result<()> {
    let done = changes::delete(&session.store, session.env(), &session.context, app).await?;
    session.narrowed(done).await?;
    let object = json!({ "id": app.to_string(), "deleted": true });
    session.out.done(&object, &format!("The application {app} is deleted."))
}

async fn rotate_secret(session: &Session, app: AppId, overlap: i64) -> Result<()> {
    let pepper = session.keyring().await?.secrets().current_pepper();
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let overlap = overlap.saturating_mul(1_000_000);
    let done = changes::rotate_secret(store, env, context, pepper, app, overlap).await?;
    let secret = session.narrowed(done).await?;
    session.out.object(&json!({
        "id": app.to_string(),
        "client_id": app.to_string(),
        "client_secret": *secret,
    }))
}

async fn grant(session: &Session, asked: Scopes, wanted: bool) -> Result<()> {
    let app = id(&asked.client_id)?;
    let api = find_api(session, asked.api.as_deref()).await?;
    let scopes = chosen(session, &api, asked.all_scopes, &asked.scope).await?;
    let last = if wanted {
        Some(connect_and_grant(session, api.api, app, &scopes).await?)
    } else {
        let (store, env, context) = (&session.store, session.env(), &session.context);
        let mut last: Option<Committed<()>> = None;
        for scope in &scopes {
            let place = (api.api, app, scope.scope);
            let next = api_changes::grant(store, env, context, place, false).await?;
            last = Some(match last {
                Some(last) => last.or_later(next),
                None => next,
            });
        }
        last
    };
    if let Some(last) = last {
        session.narrowed(last).await?;
    }
    let keys: Vec<&str> = scopes.iter().map(|scope| scope.key.as_str()).collect();
    let object = json!({
        "id": app.to_string(),
        "api_id": api.api.to_string(),
        if wanted { "granted" } else { "taken" }: keys,
    });
    let sentence = if wanted {
        format!("The application {app} has {} on {}.", keys.join(", "), api.audience)
    } else {
        format!("The application {app} no longer has {} on {}.", keys.join(", "), api.audience)
    };
    session.out.done(&object, &sentence)
}

/// Connects `app` to `api` and grants it `scopes`; the last change.
async fn connect_and_grant(
    session: &Session,
    api: ApiId,
    app: AppId,
    scopes: &[Scope],
) -> Result<Committed<()>> {
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let connected = api_changes::connect(store, env, context, api, vec![(app, true)]).await?;
    let mut last = connected.map(|_| ());
    for scope in scopes {
        let place = (api, app, scope.scope);
        last = last.or_later(api_changes::grant(store, env, context, place, true).await?);
    }
    Ok(last)
}

/// The scopes of `api` that were asked for, by key or id.
async fn chosen(session: &Session, api: &Api, all: bool, asked: &[String]) -> Result<Vec<Scope>> {
    let existing = apis::scopes(&mut session.store.read().await?, session.env(), api.api).await?;
    if all {
        return Ok(existing);
    }
    let find = |text: &String| {
        let is_it = |scope: &&Scope| scope.key == *text || scope.scope.to_string() == *text;
        existing.iter().find(is_it).cloned().ok_or_else(|| {
            let public = format!("the API {} has no scope `{text}`", api.audience);
            Error::invalid("UNKNOWN_SCOPE", public)
        })
    };
    asked.iter().map(find).collect()
}
