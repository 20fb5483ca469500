//! `keyward env`: environments, what they sign with and what they store secrets under.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use clap::Subcommand;
use keyward_core::Prefix;
use serde_json::{Value, json};

use super::input;
use super::session::{Session, environment};
use crate::error::{Error, Result};
use crate::ops::environments::{self as changes, EnvironmentPatch, NewEnvironment};
use crate::secrets::{Keyring, Secrets};
use crate::store::environments::Environment;
use crate::store::{environments, sealed};

/// Commands about environments. Those that are about one take the environment of `--env`.
#[derive(Subcommand)]
pub(super) enum EnvCommand {
    /// List environments
    List,
    /// Make an environment and print the credentials of its first application, once
    Create {
        /// Its short name, for the command line: a-z, 0-9 and -
        slug: String,
        /// The base URL under which clients will reach it; its host tells environments apart
        #[arg(long, value_name = "URL")]
        public_url: String,
        /// Its name [default: the short name]
        #[arg(long)]
        name: Option<String>,
        /// What its keys begin with
        #[arg(long, default_value = "k_live")]
        key_prefix: String,
    },
    /// Change the environment
    Update {
        /// Another name
        #[arg(long)]
        name: Option<String>,
        /// Another base URL; tokens of the old one stop working
        #[arg(long, value_name = "URL")]
        public_url: Option<String>,
        /// Another prefix for new keys; keys with the old one stay good
        #[arg(long)]
        key_prefix: Option<String>,
        /// Whether unknown users are registered on first use
        #[arg(long, value_name = "BOOL")]
        user_registration: Option<bool>,
        /// Whether keys are verified for callers without a token
        #[arg(long, value_name = "BOOL")]
        public_verification: Option<bool>,
        /// How long management tokens live, in seconds
        #[arg(long, value_name = "SECONDS")]
        token_life: Option<i64>,
    },
    /// Show the environment with its signing keys and peppers
    Show {
        /// Its short name [default: that of --env]
        slug: Option<String>,
    },
    /// Sign tokens with a new key; tokens of the present one stay good
    RotateSigningKey,
    /// Remove a retired signing key; tokens that it signed stop working
    RemoveSigningKey {
        /// The key's name, as `env show` prints it
        kid: String,
    },
    /// Store new secrets under a new pepper, which is added to the secrets file
    AddPepper,
    /// Forget a pepper under which no live secret is stored
    RemovePepper {
        /// The pepper's number, as `env show` prints it
        id: u32,
    },
}

/// Carries out a command about environments.
pub(super) async fn run(command: EnvCommand, session: &Session) -> Result<()> {
    match command {
        EnvCommand::List => list(session).await,
        EnvCommand::Create { slug, public_url, name, key_prefix } => {
            create(session, slug, public_url, name, &key_prefix).await
        }
        EnvCommand::Update {
            name,
            public_url,
            key_prefix,
            user_registration,
            public_verification,
            token_life,
        } => {
            let patch = EnvironmentPatch {
                name: input::name_if("name", name)?,
                public_url,
                key_prefix: key_prefix.as_deref().map(prefix).transpose()?,
                user_registration,
                public_verification,
                token_life_us: token_life.map(|seconds| seconds.saturating_mul(1_000_000)),
            };
            update(session, patch).await
        }
        EnvCommand::Show { slug } => show(session, slug).await,
        EnvCommand::RotateSigningKey => rotate_signing_key(session).await,
        EnvCommand::RemoveSigningKey { kid } => remove_signing_key(session, kid).await,
        EnvCommand::AddPepper => add_pepper(session).await,
        EnvCommand::RemovePepper { id } => remove_pepper(session, id).await,
    }
}

fn object(e: &Environment) -> Value {
    json!({
        "slug": e.slug,
        "id": e.env.to_string(),
        "name": e.name,
        "public_url": e.public_url,
        "key_prefixes": e.key_prefixes,
        "user_registration": e.user_registration,
        "public_verification": e.public_verification,
        "token_life_seconds": e.token_life_us / 1_000_000,
    })
}

async fn list(session: &Session) -> Result<()> {
    let found = environments::all_any_environment(&mut session.store.read().await?).await?;
    let columns = [("SLUG", "slug"), ("NAME", "name"), ("PUBLIC URL", "public_url")];
    session.out.list("environments", found.iter().map(object).collect(), false, &columns)
}

async fn create(
    session: &Session,
    slug: String,
    public_url: String,
    name: Option<String>,
    key_prefix: &str,
) -> Result<()> {
    let is_slug = (1..=63).contains(&slug.len())
        && slug.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !is_slug {
        let public = "a short name is 1 to 63 of the characters a-z, 0-9 and -";
        return Err(Error::invalid("BAD_SLUG", public));
    }
    let new = NewEnvironment {
        name: input::name("name", name.unwrap_or_else(|| slug.clone()))?,
        slug: slug.clone(),
        public_url,
        key_prefix: prefix(key_prefix)?,
    };
    let secrets = session.keyring().await?.secrets();
    let done = changes::create(&session.store, &session.context, &secrets, new).await?;
    let founded = session.widened(done).await?;
    session.out.object(&json!({
        "client_id": founded.app.to_string(),
        "client_secret": *founded.client_secret,
        "issuer": founded.issuer,
        "audience": format!("{}/api", founded.issuer),
        "token_url": format!("{}/oauth2/token", founded.issuer),
        "env": slug,
        "id": founded.env.to_string(),
    }))
}

fn prefix(text: &str) -> Result<Prefix> {
    Prefix::parse(text).ok_or_else(|| {
        let public = "a key prefix begins with a-z and has up to 16 of the characters a-z, 0-9, _";
        Error::invalid("BAD_KEY_PREFIX", public)
    })
}

async fn update(session: &Session, patch: EnvironmentPatch) -> Result<()> {
    let (store, env) = (&session.store, session.env());
    let done = changes::update(store, env, &session.context, patch).await?;
    session.narrowed(done).await?;
    let changed = environment(store, &session.environment.slug).await?;
    let sentence = format!("The environment {} is changed.", changed.slug);
    session.out.done(&object(&changed), &sentence)
}

async fn show(session: &Session, slug: Option<String>) -> Result<()> {
    let slug = slug.as_deref().unwrap_or(&session.environment.slug);
    let found = environment(&session.store, slug).await?;
    let mut conn = session.store.read().await?;
    let signing = sealed::signing_keys_any_environment(&mut conn).await?;
    let peppers = sealed::peppers_any_environment(&mut conn).await?;
    let own = signing.iter().filter(|key| key.env == found.env);
    let keys: Vec<Value> =
        own.map(|key| json!({ "kid": key.kid, "is_retired": key.retired_at.is_some() })).collect();
    let mut object = object(&found);
    if let Some(fields) = object.as_object_mut() {
        fields.insert("signing_keys".to_owned(), Value::Array(keys));
        let ids = peppers.iter().map(|pepper| json!(pepper.pepper_id)).collect();
        fields.insert("peppers".to_owned(), Value::Array(ids));
    }
    session.out.object(&object)
}

async fn rotate_signing_key(session: &Session) -> Result<()> {
    let secrets = session.keyring().await?.secrets();
    let done =
        changes::rotate_signing_key(&session.store, session.env(), &session.context, &secrets)
            .await?;
    let kid = session.widened(done).await?;
    let sentence = format!("New tokens are signed with {kid}; older ones stay good.");
    session.out.done(&json!({ "kid": kid }), &sentence)
}

async fn remove_signing_key(session: &Session, kid: String) -> Result<()> {
    let env = session.env();
    let done =
        changes::remove_signing_key(&session.store, env, &session.context, kid.clone()).await?;
    session.narrowed(done).await?;
    let sentence = format!("The signing key {kid} is removed; its tokens are refused.");
    session.out.done(&json!({ "kid": kid }), &sentence)
}

/// Timeline: the file first, then the store. A process that dies in between leaves a pepper that
/// nothing is stored under; the other order would leave a store that nobody can read.
async fn add_pepper(session: &Session) -> Result<()> {
    session.keyring().await?;
    let path = &session.config.secrets_file;
    let mut secrets = Secrets::read(path)?;
    let id = secrets.add_pepper(&session.store.entropy);
    replace(&secrets, path)?;
    let pepper = secrets.current_pepper();
    let (store, env) = (&session.store, session.env());
    let done = changes::add_pepper(store, env, &session.context, pepper).await?;
    session.widened(done).await?;
    let sentence = format!(
        "New secrets are stored under pepper {id}. Copy {} to every other node, and keep a copy.",
        path.display()
    );
    session.out.done(&json!({ "pepper": id }), &sentence)
}

async fn remove_pepper(session: &Session, id: u32) -> Result<()> {
    let keyring: Keyring = session.keyring().await?;
    if keyring.secrets().current_pepper().id() == id {
        let public = format!("new secrets are stored under pepper {id}; add another one first");
        return Err(Error::conflict("PEPPER_IN_USE", public));
    }
    let (store, env) = (&session.store, session.env());
    let done = changes::remove_pepper(store, env, &session.context, id).await?;
    session.narrowed(done).await?;
    let mut secrets = Secrets::read(&session.config.secrets_file)?;
    secrets.remove_pepper(id);
    replace(&secrets, &session.config.secrets_file)?;
    let sentence = format!("Pepper {id} is forgotten.");
    session.out.done(&json!({ "pepper": id }), &sentence)
}

/// Replaces the secrets file and leaves it to its owner, who is the server's account and not
/// always the one that runs this command.
fn replace(secrets: &Secrets, path: &Path) -> Result<()> {
    let before = std::fs::metadata(path).map_err(Error::internal)?;
    secrets.replace(path)?;
    let after = std::fs::metadata(path).map_err(Error::internal)?;
    if (before.uid(), before.gid()) != (after.uid(), after.gid()) {
        chown(path, Some(before.uid()), Some(before.gid())).map_err(|cause| {
            let public = format!(
                "{} belongs to another account now; give it back to the server's account",
                path.display()
            );
            Error::unavailable(public).because(cause)
        })?;
    }
    Ok(())
}
