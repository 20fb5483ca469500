//! `keyward init`, and what `keyward serve` does on an empty store: make it.
//!
//! The secrets file comes first and is never replaced, the environment `default` with its signing
//! key, its management API and its first application comes last and in one transaction. A process
//! that dies in between leaves a store that is still empty, on which this can be run again.

use keyward_core::Prefix;
use serde_json::json;

use super::out::Out;
use super::session;
use crate::clock::{Clock, Entropy};
use crate::config::{Config, Flags};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::lease::Settle;
use crate::ops::environments::{
    self as changes, EnvironmentPatch, FIRST_ENVIRONMENT, Founded, NewEnvironment,
};
use crate::secrets::Secrets;
use crate::store::{Store, environments, nodes, schema};

/// What its keys begin with.
const FIRST_PREFIX: &str = "k_live";
/// The name under which the store keeps the base URL that it made of a listen address, because none
/// was given. As long as that is the base URL, it goes with the listen address.
const URL_OF_LISTEN: &str = "public_url_of_listen_address";

/// Flags of `keyward init`.
#[derive(clap::Args)]
pub(super) struct InitFlags {
    /// The base URL under which clients will reach it [default: http:// and the listen address]
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// The address that `serve` will listen on
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
}

impl InitFlags {
    pub(super) fn settings(&self) -> Flags {
        [("public_url", &self.public_url), ("listen", &self.listen)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect()
    }
}

/// Makes a store and prints the credentials of its first application.
pub(super) async fn run(config: &Config, out: &Out) -> Result<()> {
    // Held to the end: no server can find half a store.
    let _lock = Folder::create(&config.folder)?.lock_soon().await?;
    let (clock, entropy) = super::sources();
    let founded = initialise_if_empty(config, clock, entropy).await?.ok_or_else(|| {
        let public = "this store is initialised already; `keyward app list` shows its \
                      applications, and `keyward app rotate-secret` gives one a new secret";
        Error::conflict("ALREADY_INITIALISED", public)
    })?;
    let object = json!({
        "client_id": founded.app.to_string(),
        "client_secret": *founded.client_secret,
        "issuer": founded.issuer,
        "audience": format!("{}/api", founded.issuer),
        "token_url": format!("{}/oauth2/token", founded.issuer),
        "env": FIRST_ENVIRONMENT,
        "data": config.folder.to_string_lossy(),
        "secrets_file": config.secrets_file.to_string_lossy(),
        "database": config.location.engine(),
    });
    out.object(&object)?;
    if !out.is_json() {
        out.note("the client secret is shown this once; start the server with `keyward serve`");
    }
    Ok(())
}

/// Makes the store that `config` names if it is empty; `None` if it is not. The caller holds the
/// folder's lock.
///
/// # Errors
/// `Unavailable` when the folder or the database cannot be written, `Invalid` when the store is
/// from a newer version or the secrets file there is none of ours.
pub async fn initialise_if_empty(
    config: &Config,
    clock: Clock,
    entropy: Entropy,
) -> Result<Option<Founded>> {
    Folder::create(&config.folder)?;
    let store = Store::open(&config.location, true, clock, entropy).await?;
    let made = async {
        schema::bring_up(&store).await?;
        if !environments::all_any_environment(&mut store.read().await?).await?.is_empty() {
            return Ok(None);
        }
        initialise(config, &store).await.map(Some)
    }
    .await;
    store.close().await;
    made
}

async fn initialise(config: &Config, store: &Store) -> Result<Founded> {
    let secrets = if config.secrets_file.exists() {
        Secrets::read(&config.secrets_file)?
    } else {
        let secrets = Secrets::generate(&store.entropy);
        secrets.write_new(&config.secrets_file)?;
        secrets
    };
    let context = session::operator(&store.clock, &store.entropy);
    let new = NewEnvironment {
        slug: FIRST_ENVIRONMENT.to_owned(),
        name: "Default".to_owned(),
        public_url: config.base_url(),
        key_prefix: Prefix::parse(FIRST_PREFIX).expect("a valid prefix"),
    };
    // Nobody serves from an empty store, so there is nobody to wait for.
    let founded = changes::create(store, &context, &secrets, new).await?.value;
    if config.public_url.is_none() {
        // A crash before this leaves a URL that looks as if it had been given, and so stays.
        schema::set_meta(&mut store.side().await?, URL_OF_LISTEN, &founded.issuer).await?;
    }
    Ok(founded)
}

/// Gives the environment `default` the base URL that `config` asks for, if it has another. That is
/// a change like any other, with an audit record. A URL that nobody ever gave goes with the listen
/// address, where that is safe.
///
/// # Errors
/// `Conflict` when another environment answers at that host.
pub(crate) async fn adopt_public_url(config: &Config, store: &Store) -> Result<()> {
    let mut conn = store.read().await?;
    let found = environments::by_slug(&mut conn, FIRST_ENVIRONMENT).await?;
    let of_listen = schema::meta(&mut conn, URL_OF_LISTEN).await?;
    let is_alone = store.is_sqlite() || nodes::all(&mut conn).await?.rows.is_empty();
    drop(conn);
    let Some(environment) = found else { return Ok(()) };
    if config.public_url.is_some() && of_listen.is_some() {
        schema::unset_meta(&mut store.side().await?, URL_OF_LISTEN).await?;
    }
    let public_url = config.base_url();
    // One who changed it with `keyward env update` has given it, too.
    let was_given = of_listen.as_ref() != Some(&environment.public_url);
    if environment.public_url == public_url || (config.public_url.is_none() && was_given) {
        return Ok(());
    }
    // Nobody can call 0.0.0.0, and another server may answer at the present URL.
    if config.public_url.is_none() && (config.listen.ip().is_unspecified() || !is_alone) {
        tracing::warn!(
            "the base URL is {}, and this server listens on {}: say with --public-url where \
             clients reach it",
            environment.public_url,
            config.listen
        );
        return Ok(());
    }
    if config.public_url.is_none() {
        tracing::warn!(
            "the base URL is {public_url} from now on, the listen address, because none was ever \
             given; --public-url makes it stay"
        );
    }
    let context = session::operator(&store.clock, &store.entropy);
    let url = Some(public_url.clone());
    let patch = EnvironmentPatch { public_url: url, ..EnvironmentPatch::default() };
    let done = changes::update(store, environment.env, &context, patch).await?;
    if config.public_url.is_none() {
        schema::set_meta(&mut store.side().await?, URL_OF_LISTEN, &public_url).await?;
    }
    let folder = Folder::existing(&config.folder);
    session::wait_until_in_force(store, &folder, done.stamp(), Settle::Narrowing).await
}
