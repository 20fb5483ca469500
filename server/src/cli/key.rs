//! `keyward key`: keys, from issuing to revoking. Importing many is in `import`.

use std::time::Duration;

use clap::Subcommand;
use keyward_core::KeyId;
use serde_json::{Map, Value, json};

use super::api::find_api;
use super::import::{self, ImportFlags};
use super::input::{self, LIMIT, cut};
use super::session::Session;
use super::socket::{self, Request};
use crate::error::{Error, Result};
use crate::http::fields::Fields;
use crate::http::keys::{DESCRIPTION_MAX, NAME_MAX, new_key};
use crate::http::wire::{self, ScopeNames};
use crate::ops::keys::{self as changes, Issued, KeyPatch};
use crate::store::keys::{Filter, Key};
use crate::store::{apis, counts, keys};

/// How long the running server may take to say how often a key was verified.
const PATIENCE: Duration = Duration::from_secs(1);

/// Commands about keys.
#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// List keys, the newest first
    List(ListFlags),
    /// Issue a key and print its secret, once
    Issue(IssueFlags),
    /// Show a key and how often it was verified
    Show {
        /// The key's id
        key_id: String,
    },
    /// Rename a key
    Rename {
        /// The key's id
        key_id: String,
        /// Its new name
        name: String,
    },
    /// Change a key; an empty text clears a field
    Update(UpdateFlags),
    /// Let a disabled key be used again
    Enable {
        /// The key's id
        key_id: String,
    },
    /// Disable a key; it is refused until it is enabled
    Disable {
        /// The key's id
        key_id: String,
    },
    /// Give a key a new secret and print it, once; the present one ends
    Rotate {
        /// The key's id
        key_id: String,
    },
    /// Revoke a key for good
    Revoke {
        /// The key's id
        key_id: String,
        /// Why, for the audit log
        #[arg(long)]
        reason: Option<String>,
    },
    /// Import keys made elsewhere, by their hashes
    Import(ImportFlags),
}

/// Which keys a list shows.
#[derive(clap::Args)]
pub(super) struct ListFlags {
    /// Only keys of this user
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
    /// Only keys of this organization and of its members inside it
    #[arg(long, value_name = "CODE")]
    org: Option<String>,
    /// Only keys of the API with this id or audience
    #[arg(long)]
    api: Option<String>,
    /// Only keys with this status
    #[arg(long, value_parser = ["active", "inactive", "revoked"])]
    status: Option<String>,
    /// Only keys with exactly this name
    #[arg(long)]
    name: Option<String>,
    /// Only keys that expire before this time
    #[arg(long, value_name = "TIME")]
    expiring_before: Option<String>,
    /// Most to show
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(LIMIT))]
    limit: i64,
    /// Go on after this key
    #[arg(long, value_name = "KEY_ID")]
    after: Option<String>,
}

/// What a new key shall be.
#[derive(clap::Args)]
pub(super) struct IssueFlags {
    /// Its name
    name: String,
    /// The API that it is for, by id or audience [default: the only one]
    #[arg(long)]
    api: Option<String>,
    /// The user that it is for
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
    /// The organization that it is for, or inside which the user has it
    #[arg(long, value_name = "CODE")]
    org: Option<String>,
    /// Whose key it is: user, organization or environment [default: by --user and --org]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// A scope's key or id (repeatable)
    #[arg(long)]
    scope: Vec<String>,
    /// Not good from this time on (RFC 3339)
    #[arg(long, value_name = "TIME")]
    expires_on: Option<String>,
    /// Not good after so many days
    #[arg(long, value_name = "DAYS")]
    expires_in_days: Option<i64>,
    /// Not good before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// What it is for
    #[arg(long)]
    description: Option<String>,
    /// name=value, handed out with every verification (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    metadata: Vec<String>,
}

/// What changes of a key.
#[derive(clap::Args)]
pub(super) struct UpdateFlags {
    /// The key's id
    key_id: String,
    /// Another name
    #[arg(long)]
    name: Option<String>,
    /// Another description
    #[arg(long)]
    description: Option<String>,
    /// name=value pairs in the place of the present ones (repeatable)
    #[arg(long, value_name = "NAME=VALUE")]
    metadata: Vec<String>,
    /// Remove all metadata
    #[arg(long, conflicts_with = "metadata")]
    no_metadata: bool,
    /// Not good from this time on (RFC 3339)
    #[arg(long, value_name = "TIME")]
    expires_on: Option<String>,
    /// Not good before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
}

/// Carries out a command about keys.
pub(super) async fn run(command: KeyCommand, session: &Session) -> Result<()> {
    match command {
        KeyCommand::List(flags) => list(session, flags).await,
        KeyCommand::Issue(flags) => issue(session, flags).await,
        KeyCommand::Show { key_id } => show(session, id(&key_id)?).await,
        KeyCommand::Rename { key_id, name } => {
            let name = Some(input::name("name", name)?);
            let patch = KeyPatch { name, ..KeyPatch::default() };
            update(session, id(&key_id)?, patch, "renamed").await
        }
        KeyCommand::Update(flags) => {
            let key = id(&flags.key_id)?;
            update(session, key, patch(flags)?, "changed").await
        }
        KeyCommand::Enable { key_id } => {
            update(session, id(&key_id)?, enabled(true), "enabled").await
        }
        KeyCommand::Disable { key_id } => {
            update(session, id(&key_id)?, enabled(false), "disabled").await
        }
        KeyCommand::Rotate { key_id } => rotate(session, id(&key_id)?).await,
        KeyCommand::Revoke { key_id, reason } => revoke(session, id(&key_id)?, reason).await,
        KeyCommand::Import(flags) => import::run(flags, session).await,
    }
}

fn enabled(enabled: bool) -> KeyPatch {
    KeyPatch { enabled: Some(enabled), ..KeyPatch::default() }
}

fn id(text: &str) -> Result<KeyId> {
    input::id("a key, which is api_key_ and 32 hex digits", text, KeyId::parse)
}

async fn list(session: &Session, flags: ListFlags) -> Result<()> {
    let api = match &flags.api {
        None => None,
        Some(named) => Some(find_api(session, Some(named)).await?.api),
    };
    let after = flags.after.as_deref().map(id).transpose()?;
    let mut times = Fields::of_object(Map::from_iter([(
        "expiring_before".to_owned(),
        flags.expiring_before.map_or(Value::Null, Value::String),
    )]));
    let filter = Filter {
        status: flags.status,
        user: flags.user,
        org: flags.org,
        api,
        name: flags.name,
        expiring_before: times.take_time("expiring_before")?,
        ..Filter::default()
    };
    let (mut conn, env) = (session.store.read().await?, session.env());
    let mut found = keys::page(&mut conn, env, &filter, after, flags.limit + 1).await?;
    let has_more = cut(&mut found, flags.limit);
    let names = ScopeNames::of(&mut conn, &found).await?;
    let ids: Vec<KeyId> = found.iter().map(|key| key.key).collect();
    let uses = counts::of_keys(&mut conn, env, &ids).await?;
    let unused = counts::Use::default();
    let rows = found.iter().map(|key| {
        let used = uses.get(&key.key).unwrap_or(&unused);
        wire::key(key, used, &names)
    });
    let rows = rows.collect();
    let columns = [
        ("ID", "id"),
        ("NAME", "name"),
        ("STATUS", "status"),
        ("USER", "user_id"),
        ("ORG", "organization_id"),
        ("KEY", "key_prefix"),
        ("…", "key_suffix"),
        ("SCOPES", "scopes"),
        ("EXPIRES", "expires_on"),
    ];
    session.out.list("api_keys", rows, has_more, &columns)
}

/// The API that a new key is for when none is named: the only one that is not Keyward's own.
async fn only_api(session: &Session) -> Result<String> {
    let all = apis::all(&mut session.store.read().await?, session.env()).await?;
    let mut own = all.into_iter().filter(|api| !api.is_management);
    match (own.next(), own.next()) {
        (Some(api), None) => Ok(api.api.to_string()),
        (Some(_), Some(_)) => {
            Err(Error::invalid("MISSING_API", "there are several APIs; name one with --api"))
        }
        (None, _) => {
            let public = "there is no API to issue keys for; make one with `keyward api create`";
            Err(Error::invalid("MISSING_API", public))
        }
    }
}

async fn issue(session: &Session, flags: IssueFlags) -> Result<()> {
    if flags.user.is_none() && flags.org.is_none() && flags.kind.is_none() {
        let public = "say whose key it is, with --user, --org or --type environment";
        return Err(Error::invalid("MISSING_OWNER", public));
    }
    let api = match &flags.api {
        Some(named) => find_api(session, Some(named)).await?.api.to_string(),
        None => only_api(session).await?,
    };
    let mut object = Map::new();
    for (name, value) in [
        ("name", Some(flags.name)),
        ("api_id", Some(api)),
        ("type", flags.kind),
        ("user_id", flags.user),
        ("org_code", flags.org),
        ("expires_on", flags.expires_on),
        ("not_before", flags.not_before),
        ("description", flags.description),
    ] {
        object.extend(value.map(|value| (name.to_owned(), Value::String(value))));
    }
    object.extend(flags.expires_in_days.map(|days| ("expires_in_days".to_owned(), days.into())));
    object.insert("scope_ids".to_owned(), json!(flags.scope));
    object.insert("metadata".to_owned(), metadata(&flags.metadata)?);
    // The same reading as over HTTP, so that the two cannot differ in what they accept.
    let new = new_key(&mut Fields::of_object(object), session.store.clock.now_us())?;
    let pepper = session.keyring().await?.secrets().current_pepper();
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::issue(store, env, context, pepper, new).await?;
    let issued = session.widened(done).await?;
    print_once(session, &issued)
}

/// `name=value` pairs as an object of texts, or null when there are none.
fn metadata(pairs: &[String]) -> Result<Value> {
    let object = input::pairs("metadata", pairs)?;
    Ok(if object.is_empty() { Value::Null } else { Value::Object(object) })
}

fn print_once(session: &Session, issued: &Issued) -> Result<()> {
    session.out.object(&json!({
        "id": issued.key.to_string(),
        "key": issued.secret.expose(),
    }))
}

async fn find(session: &Session, key: KeyId) -> Result<Key> {
    let found = keys::find(&mut session.store.read().await?, session.env(), key).await?;
    found.ok_or_else(|| Error::not_found("API key"))
}

/// A key as the API shows it. The running server is asked first, because it knows of verifications
/// that are not in the database yet; what it did not say is no failure of the command.
async fn object(session: &Session, key: KeyId) -> Result<Value> {
    if let Some(stream) = socket::connect(&session.folder).await {
        let request = Request {
            method: "GET",
            path: &format!("/api/v1/api_keys/{key}"),
            host: &session.environment.host,
            content_type: None,
            body: &[],
        };
        let asked = tokio::time::timeout(PATIENCE, socket::ask(stream, &request)).await;
        if let Ok(Ok(mut answer)) = asked
            && answer.status == 200
            && let Some(key) = answer.body.get_mut("api_key")
        {
            return Ok(key.take());
        }
    }
    let key = find(session, key).await?;
    let mut conn = session.store.read().await?;
    let names = ScopeNames::of(&mut conn, std::slice::from_ref(&key)).await?;
    let used = counts::of_key(&mut conn, session.env(), key.key).await?;
    Ok(wire::key(&key, &used, &names))
}

async fn show(session: &Session, key: KeyId) -> Result<()> {
    session.out.object(&object(session, key).await?)
}

fn patch(flags: UpdateFlags) -> Result<KeyPatch> {
    let mut given = Map::new();
    let mut clears = |name: &str, value: Option<String>| {
        let clear = value.as_deref() == Some("");
        let value = value.filter(|value| !value.is_empty());
        given.extend(value.map(|value| (name.to_owned(), Value::String(value))));
        clear
    };
    let no_description = clears("description", flags.description);
    let no_start = clears("not_before", flags.not_before);
    let no_end = clears("expires_on", flags.expires_on);
    clears("name", flags.name);
    given.insert("metadata".to_owned(), metadata(&flags.metadata)?);
    let mut fields = Fields::of_object(given);
    fn or_clear<T>(clear: bool, value: Option<T>) -> Option<Option<T>> {
        if clear { Some(None) } else { value.map(Some) }
    }
    Ok(KeyPatch {
        name: fields.take_name("name", NAME_MAX)?,
        description: or_clear(no_description, fields.take_text("description", DESCRIPTION_MAX)?),
        metadata: or_clear(flags.no_metadata, crate::http::keys::take_metadata(&mut fields)?),
        enabled: None,
        not_before: or_clear(no_start, fields.take_time("not_before")?),
        expires_at: or_clear(no_end, fields.take_time("expires_on")?),
    })
}

async fn update(session: &Session, key: KeyId, patch: KeyPatch, verb: &str) -> Result<()> {
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let settle = patch.settle();
    let done = changes::update(store, env, context, key, patch).await?;
    session.settle(done.stamp(), settle).await?;
    session.out.done(&object(session, key).await?, &format!("The key {key} is {verb}."))
}

async fn rotate(session: &Session, key: KeyId) -> Result<()> {
    let pepper = session.keyring().await?.secrets().current_pepper();
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::rotate(store, env, context, pepper, key).await?;
    let issued = session.narrowed(done).await?;
    print_once(session, &issued)
}

async fn revoke(session: &Session, key: KeyId, reason: Option<String>) -> Result<()> {
    let reason = input::description(reason)?.flatten();
    let (store, env, context) = (&session.store, session.env(), &session.context);
    let done = changes::revoke(store, env, context, key, reason).await?;
    session.narrowed(done).await?;
    session.out.done(&object(session, key).await?, &format!("The key {key} is revoked."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> UpdateFlags {
        UpdateFlags {
            key_id: String::new(),
            name: None,
            description: None,
            metadata: Vec::new(),
            no_metadata: false,
            expires_on: None,
            not_before: None,
        }
    }

    #[test]
    fn an_empty_text_clears_a_field_and_an_absent_flag_leaves_it() {
        let patch = patch(UpdateFlags {
            description: Some(String::new()),
            expires_on: Some("2030-01-01T00:00:00Z".to_owned()),
            ..flags()
        });
        let patch = patch.expect("good");
        assert_eq!(patch.description, Some(None));
        assert_eq!(patch.expires_at, Some(Some(1_893_456_000_000_000)));
        assert_eq!((patch.name, patch.metadata, patch.not_before), (None, None, None));
    }

    #[test]
    fn metadata_replaces_what_was_there_or_removes_it() {
        let metadata = vec!["a=1".to_owned()];
        let given = patch(UpdateFlags { metadata, ..flags() }).expect("good");
        assert_eq!(given.metadata, Some(Some(r#"{"a":"1"}"#.to_owned())));
        let removed = patch(UpdateFlags { no_metadata: true, ..flags() }).expect("good");
        assert_eq!(removed.metadata, Some(None));
    }
}
