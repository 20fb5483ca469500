//! `keyward demo`: a server on a throw-away store with one API, one user and one key.
//!
//! It reads no configuration and no environment, so that it cannot touch a real store, and removes
//! its folder when it ends.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use keyward_core::UserId;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

use super::init::initialise_if_empty;
use super::out::Out;
use super::session::{environment, open_store, operator};
use super::socket::{self, Request};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::ops::environments::{FIRST_ENVIRONMENT, Founded};
use crate::ops::keys::{NewKey, NewOwner};
use crate::ops::users::NewUser;
use crate::ops::{apis, keys, users};
use crate::secrets::Secrets;
use crate::serve::Server;

/// The audience of the demonstration's API.
const AUDIENCE: &str = "https://api.example.com";
/// Its scope.
const SCOPE: &str = "read:profile";
/// The owner of its key.
const USER: &str = "demo_user";

/// Flags of `keyward demo`.
#[derive(clap::Args)]
pub(super) struct DemoFlags {
    /// The address to listen on [default: a free port of 127.0.0.1]
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
}

/// A folder that goes away with its last user.
struct ThrowAway(PathBuf);

impl Drop for ThrowAway {
    fn drop(&mut self) {
        // OK to ignore: what is left lies among the system's temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Serves the demonstration until it is told to end.
pub(super) async fn run(flags: DemoFlags, out: &Out) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::internal)?;
    crate::telemetry::start_logging(super::QUIET, false);
    let (clock, entropy) = super::sources();
    let name = format!("keyward-demo-{}", entropy.alphanumeric::<12>());
    let folder = ThrowAway(std::env::temp_dir().join(name));
    let listen = match flags.listen {
        Some(listen) => listen,
        None => free_address()?.to_string(),
    };
    let data = folder.0.to_string_lossy().into_owned();
    let config = Config::isolated(vec![("data", data), ("listen", listen)])?;
    let founded = initialise_if_empty(&config, clock.clone(), entropy.clone())
        .await?
        .ok_or_else(|| Error::internal("the demonstration's folder was not empty"))?;
    let seeded = seed(&config).await?;
    let server = Server::start(&config, clock, entropy).await?;
    let shown = async { show(&config, &founded, &seeded, &server, out).await };
    let shown = tokio::select! {
        shown = shown => shown,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    if shown.is_ok() {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    server.stop().await;
    shown
}

/// A free port of this machine. Between here and listening somebody could take it; then the
/// server says so.
fn free_address() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|cause| Error::unavailable("no port is free").because(cause))
}

/// What the store was seeded with.
struct Seeded {
    api: String,
    key_id: String,
    secret: keyward_core::Secret,
}

async fn seed(config: &Config) -> Result<Seeded> {
    let (clock, entropy) = super::sources();
    let context = operator(&clock, &entropy);
    let store = open_store(config, clock, entropy).await?;
    let env = environment(&store, FIRST_ENVIRONMENT).await?.env;
    let pepper = Secrets::read(&config.secrets_file)?.current_pepper();
    let (name, audience) = ("demo".to_owned(), AUDIENCE.to_owned());
    let api = apis::create(&store, env, &context, name, audience).await?.value;
    let scope = SCOPE.to_owned();
    apis::create_scope(&store, env, &context, api, scope.clone(), None).await?;
    let user = UserId::parse(USER).expect("a valid id");
    let new = NewUser { user: Some(user.clone()), ..NewUser::default() };
    users::create(&store, env, &context, new).await?;
    let new = NewKey {
        name: "Demo key".to_owned(),
        description: None,
        metadata: None,
        owner: NewOwner::User(user, None),
        api,
        scopes: vec![scope],
        not_before: None,
        expires_at: None,
    };
    let issued = keys::issue(&store, env, &context, pepper, new).await?.value;
    store.close().await;
    Ok(Seeded { api: api.to_string(), key_id: issued.key.to_string(), secret: issued.secret })
}

/// Gets a token, as an API would, and prints how to verify the key with it.
async fn show(
    config: &Config,
    founded: &Founded,
    seeded: &Seeded,
    server: &Server,
    out: &Out,
) -> Result<()> {
    let url = config.base_url();
    let token = token(founded, server.address).await?;
    let verify = format!(
        "curl -s {url}/api/v1/api_keys/verify -H 'Authorization: Bearer {token}' \
         -H 'Content-Type: application/json' -d '{{\"api_key\":\"{}\"}}'",
        seeded.secret.expose()
    );
    if out.is_json() {
        return out.object(&json!({
            "url": url,
            "issuer": founded.issuer,
            "client_id": founded.app.to_string(),
            "client_secret": *founded.client_secret,
            "access_token": token,
            "api_id": seeded.api,
            "audience": AUDIENCE,
            "scopes": [SCOPE],
            "user_id": USER,
            "key_id": seeded.key_id,
            "key": seeded.secret.expose(),
            "verify_command": verify,
        }));
    }
    out.text(&format!(
        "Keyward serves at {url} from a throw-away database.\n\n\
         API    {AUDIENCE} with the scope {SCOPE}\n\
         User   {USER}\n\
         Key    {}\n\n\
         Whose key is it? Paste this into another terminal:\n\n{verify}\n\n\
         The management API takes tokens from {url}/oauth2/token:\n\
         client_id {}, client_secret {}, audience {url}/api.\n\
         The reference is at {url}/reference. Ctrl-C ends it and removes everything.\n",
        seeded.secret.expose(),
        founded.app,
        *founded.client_secret
    ))
}

async fn token(founded: &Founded, address: SocketAddr) -> Result<String> {
    let stream = TcpStream::connect(address).await.map_err(Error::internal)?;
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_id", &founded.app.to_string())
        .append_pair("client_secret", &founded.client_secret)
        .append_pair("audience", &format!("{}/api", founded.issuer))
        // One scope makes a token that is short enough to paste.
        .append_pair("scope", "verify:api_keys")
        .finish();
    let request = Request {
        method: "POST",
        path: "/oauth2/token",
        host: &address.to_string(),
        content_type: Some("application/x-www-form-urlencoded"),
        body: body.as_bytes(),
    };
    let answer = socket::ask(stream, &request).await?;
    let token = answer.body.get("access_token").and_then(Value::as_str);
    token.map(str::to_owned).ok_or_else(|| socket::failure(&answer))
}
