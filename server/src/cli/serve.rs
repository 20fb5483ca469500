//! `keyward serve`: its flags, and what is done before the first request. What a server does is in
//! `crate::serve`.

use tokio::signal::unix::{SignalKind, signal};

use super::init::{adopt_public_url, initialise_if_empty};
use super::out::Out;
use super::session::open_store;
use crate::config::{Config, Flags};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::secrets::Keyring;
use crate::serve::{Addresses, tls_acceptor};

/// Flags of `keyward serve`; each is also a setting.
#[derive(clap::Args)]
pub(super) struct ServeFlags {
    /// The address to listen on [default: 127.0.0.1:8787]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// The base URL under which clients reach the environment `default`
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// The certificate chain to serve TLS with (PEM)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// A second address that serves metrics without a token
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
    /// How long verification goes on without the database: default (15 s), strict (5 s) or
    /// availability (60 s)
    #[arg(long, value_name = "WORD")]
    lease: Option<String>,
    /// How log lines look: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl ServeFlags {
    pub(super) fn settings(&self) -> Flags {
        [
            ("listen", &self.listen),
            ("public_url", &self.public_url),
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("metrics_listen", &self.metrics_listen),
            ("lease", &self.lease),
            ("log_format", &self.log_format),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)))
        .collect()
    }
}

/// Prepares the store and serves until it is told to end.
pub(super) async fn run(mut config: Config, out: &Out) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::internal)?;
    let addresses = tokio::select! {
        prepared = prepare(&mut config, out) => prepared?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    crate::serve::run(config, addresses).await
}

/// Makes the store if it is empty, and takes over a new base URL. What would keep the server from
/// starting is found before anything is changed.
async fn prepare(config: &mut Config, out: &Out) -> Result<Addresses> {
    config.tls.as_ref().map(tls_acceptor).transpose()?;
    let lock = Folder::create(&config.folder)?.lock_soon().await?;
    // The base URL can be made of the address, so it is known and ours before there is a store.
    let addresses = Addresses::bind(config)?;
    config.listen = addresses.main()?;
    let (clock, entropy) = super::sources();
    let founded = initialise_if_empty(config, clock, entropy).await?;
    // The server takes it again, for as long as it lives.
    drop(lock);
    if let Some(founded) = founded {
        let data = config.folder.display();
        out.note(&format!(
            "the store was empty and is initialised, with the base URL {}; for credentials run \
             `keyward app rotate-secret {} --data {data}`",
            founded.issuer, founded.app
        ));
    }
    let (clock, entropy) = super::sources();
    let store = open_store(config, clock, entropy).await?;
    let adopted = async {
        let keyring = Keyring::open(config.secrets_file.clone())?;
        keyring.check(&mut store.read().await?).await?;
        adopt_public_url(config, &store).await
    }
    .await;
    store.close().await;
    adopted.map(|()| addresses)
}
