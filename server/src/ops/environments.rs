//! Environments and what they sign and store secrets with.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use keyward_core::{ApiId, AppId, EnvId, Pepper, Prefix, ScopeId};
use serde_json::json;

use super::{Action, Context};
use crate::error::{Error, Result};
use crate::scope::Scope;
use crate::secrets::Secrets;
use crate::store::apis::{Api, Scope as ApiScope};
use crate::store::applications::Application;
use crate::store::environments::Environment;
use crate::store::sealed::SigningKey;
use crate::store::{
    Committed, Fact, Outcome, Store, Touched, Tx, apis, applications, environments, schema, sealed,
};

/// How long a management token lives unless the environment says otherwise: 24 h in µs.
const TOKEN_LIFE_US: i64 = 24 * 3_600 * 1_000_000;

/// What a new environment shall be.
#[derive(Debug, Clone)]
pub struct NewEnvironment {
    /// Its short name.
    pub slug: String,
    /// Its name.
    pub name: String,
    /// Its base URL.
    pub public_url: String,
    /// The prefix of its keys.
    pub key_prefix: Prefix,
}

/// A new environment with its first application, which holds every management scope.
#[derive(Debug)]
pub struct Founded {
    /// The environment.
    pub env: EnvId,
    /// The issuer of its tokens.
    pub issuer: String,
    /// The first application.
    pub app: AppId,
    /// Its client secret, which nobody will see again.
    pub client_secret: zeroize::Zeroizing<String>,
}

/// A base URL taken apart: no slash at its end, and the host that requests for it carry.
///
/// # Errors
/// `Invalid` unless it is `http://` or `https://` and a host, with an optional path.
pub fn base_url(text: &str) -> Result<(String, String)> {
    // The text is not repeated: it may hold a password, or be something else altogether.
    let wrong = || {
        let public = "this is not a base URL such as https://keys.example.com: http:// or \
                      https://, a host, and no path, query or user";
        Error::invalid("BAD_PUBLIC_URL", public)
    };
    let trimmed = text.trim_end_matches('/');
    let uri: hyper::Uri = trimmed.parse().map_err(|_| wrong())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong());
    };
    let own_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(wrong()),
    };
    let plain = uri.query().is_none() && !authority.as_str().contains('@');
    if !plain || !matches!(uri.path(), "" | "/") || trimmed.contains('#') {
        return Err(wrong());
    }
    let host = authority.host().to_ascii_lowercase();
    let host = match authority.port_u16() {
        Some(port) if port != own_port => format!("{host}:{port}"),
        Some(_) | None => host,
    };
    Ok((trimmed.to_owned(), host))
}

/// Makes an environment: its signing key, its management API and its first application.
///
/// # Errors
/// `Conflict` when the slug or the host is taken, `Invalid` for a bad URL.
pub async fn create(
    store: &Store,
    context: &Context,
    secrets: &Secrets,
    new: NewEnvironment,
) -> Result<Committed<Founded>> {
    let (public_url, host) = base_url(&new.public_url)?;
    let env = EnvId::from_bytes(store.entropy.id(store.clock.now_us()));
    let signing = new_signing_key(store, secrets, env).await?;
    let peppers: Vec<(u32, [u8; 32])> =
        secrets.peppers().iter().map(|p| (p.id(), Secrets::check_value(p))).collect();
    let pepper = secrets.current_pepper();
    store
        .write(env, context, Action::EnvironmentCreated, move |tx| {
            Box::pin(async move {
                let known = sealed::peppers_any_environment(&mut tx.conn).await?;
                if known.is_empty() {
                    for (id, check) in &peppers {
                        sealed::insert_pepper(&mut tx.conn, *id, check, tx.now).await?;
                    }
                }
                let environment = Environment {
                    env,
                    slug: new.slug,
                    name: new.name,
                    public_url: public_url.clone(),
                    host,
                    key_prefixes: vec![new.key_prefix.as_str().to_owned()],
                    user_registration: true,
                    public_verification: false,
                    token_life_us: TOKEN_LIFE_US,
                    changed_seq: tx.seq(),
                };
                environments::insert(&mut tx.conn, &environment, tx.now).await?;
                sealed::insert_signing_key(&mut tx.conn, &signing, tx.now).await?;
                let api = insert_management_api(tx, env, &public_url).await?;
                let (app, client_secret) = insert_first_application(tx, env, &pepper).await?;
                applications::connect(&mut tx.conn, env, app, api, tx.now).await?;
                for scope in apis::scopes(&mut tx.conn, env, api).await? {
                    applications::grant(&mut tx.conn, env, app, api, scope.scope).await?;
                }
                let fact = Fact {
                    target_kind: "environment",
                    target_id: env.to_string(),
                    after: Some(json!({
                        "slug": environment.slug,
                        "public_url": public_url,
                        "application": app.to_string(),
                    })),
                    touched: vec![Touched::Directory, Touched::Api(api)],
                    ..Fact::default()
                };
                Ok(Outcome::Changed(Founded { env, issuer: public_url, app, client_secret }, fact))
            })
        })
        .await
}

async fn insert_management_api(tx: &mut Tx, env: EnvId, public_url: &str) -> Result<ApiId> {
    let api = ApiId::from_bytes(tx.entropy.id(tx.now));
    let row = Api {
        api,
        env,
        name: "Keyward Management API".to_owned(),
        audience: format!("{public_url}/api"),
        is_management: true,
        created_at: tx.now,
        deleted_at: None,
        changed_seq: tx.seq(),
    };
    apis::insert(&mut tx.conn, &row).await?;
    for scope in Scope::ALL {
        let row = ApiScope {
            scope: ScopeId::from_bytes(tx.entropy.id(tx.now)),
            api,
            key: scope.word().to_owned(),
            description: None,
        };
        let (now, seq) = (tx.now, tx.seq());
        apis::insert_scope(&mut tx.conn, env, &row, now, seq).await?;
    }
    Ok(api)
}

async fn insert_first_application(
    tx: &mut Tx,
    env: EnvId,
    pepper: &Pepper,
) -> Result<(AppId, zeroize::Zeroizing<String>)> {
    let app = AppId::from_bytes(tx.entropy.id(tx.now));
    let row = Application {
        app,
        env,
        name: "First application".to_owned(),
        created_at: tx.now,
        disabled_at: None,
        changed_seq: tx.seq(),
    };
    applications::insert(&mut tx.conn, &row).await?;
    let secret = super::applications::new_client_secret(tx, app, pepper).await?;
    Ok((app, secret))
}

/// What changes of an environment; `None` leaves a field as it is.
#[derive(Debug, Default, Clone)]
pub struct EnvironmentPatch {
    /// Another name.
    pub name: Option<String>,
    /// Another base URL; tokens of the old one are refused from then on.
    pub public_url: Option<String>,
    /// Another prefix for new keys; keys with the old one stay good.
    pub key_prefix: Option<Prefix>,
    /// Whether a user unknown to Keyward is registered on first use.
    pub user_registration: Option<bool>,
    /// Whether keys are verified for callers without a token.
    pub public_verification: Option<bool>,
    /// How long a management token lives, in µs.
    pub token_life_us: Option<i64>,
}

/// Changes an environment.
///
/// # Errors
/// `NotFound`, `Conflict` when another environment answers at the host, `Invalid` for a bad URL.
pub async fn update(
    store: &Store,
    env: EnvId,
    context: &Context,
    patch: EnvironmentPatch,
) -> Result<Committed<()>> {
    let url = patch.public_url.as_deref().map(base_url).transpose()?;
    if patch.token_life_us.is_some_and(|life| !(60_000_000..=30 * TOKEN_LIFE_US).contains(&life)) {
        let public = "tokens live between one minute and thirty days";
        return Err(Error::invalid("BAD_TOKEN_LIFE", public));
    }
    store
        .write(env, context, Action::EnvironmentUpdated, move |tx| {
            Box::pin(async move {
                let mut environment = environments::find(&mut tx.conn, env)
                    .await?
                    .ok_or_else(|| Error::not_found("environment"))?;
                let before = settings(&environment);
                if let Some((public_url, host)) = url {
                    (environment.public_url, environment.host) = (public_url, host);
                }
                if let Some(prefix) = patch.key_prefix {
                    let prefix = prefix.as_str().to_owned();
                    environment.key_prefixes.retain(|existing| *existing != prefix);
                    environment.key_prefixes.insert(0, prefix);
                }
                environment.name = patch.name.unwrap_or(environment.name);
                environment.user_registration =
                    patch.user_registration.unwrap_or(environment.user_registration);
                environment.public_verification =
                    patch.public_verification.unwrap_or(environment.public_verification);
                environment.token_life_us =
                    patch.token_life_us.unwrap_or(environment.token_life_us);
                let after = settings(&environment);
                if before == after {
                    return Ok(Outcome::Reached((), environment.changed_seq));
                }
                environment.changed_seq = tx.seq();
                environments::update(&mut tx.conn, &environment).await?;
                let audience = format!("{}/api", environment.public_url);
                let seq = tx.seq();
                apis::set_management_audience(&mut tx.conn, env, &audience, seq).await?;
                let mut touched = vec![Touched::Directory];
                for api in apis::all(&mut tx.conn, env).await? {
                    if api.is_management {
                        touched.push(Touched::Api(api.api));
                    }
                }
                let fact = Fact {
                    target_kind: "environment",
                    target_id: env.to_string(),
                    before: Some(before),
                    after: Some(after),
                    touched,
                    ..Fact::default()
                };
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

fn settings(e: &Environment) -> serde_json::Value {
    json!({
        "name": e.name,
        "public_url": e.public_url,
        "key_prefixes": e.key_prefixes,
        "user_registration": e.user_registration,
        "public_verification": e.public_verification,
        "token_life_seconds": e.token_life_us / 1_000_000,
    })
}

/// Makes an RSA key of 2048 bits with its private half sealed.
async fn new_signing_key(store: &Store, secrets: &Secrets, env: EnvId) -> Result<SigningKey> {
    // Finding two primes takes tens of milliseconds, which no other request should wait for.
    let pair = tokio::task::spawn_blocking(|| KeyPair::generate(KeySize::Rsa2048))
        .await
        .map_err(Error::internal)?
        .map_err(|_| Error::internal("an RSA key could not be made"))?;
    let private: Pkcs8V1Der<'_> =
        pair.as_der().map_err(|_| Error::internal("an RSA key could not be written"))?;
    let kid = store.entropy.alphanumeric::<16>();
    let public = pair.public_key();
    Ok(SigningKey {
        env,
        n: public.modulus().big_endian_without_leading_zero().to_vec(),
        e: public.exponent().big_endian_without_leading_zero().to_vec(),
        private_sealed: secrets.seal(&kid, private.as_ref()),
        kid,
        retired_at: None,
    })
}

/// Signs with a new key from now on; tokens of the present one stay good.
///
/// # Errors
/// `Unavailable` when the store does not answer.
pub async fn rotate_signing_key(
    store: &Store,
    env: EnvId,
    context: &Context,
    secrets: &Secrets,
) -> Result<Committed<String>> {
    let key = new_signing_key(store, secrets, env).await?;
    store
        .write(env, context, Action::SigningKeyRotated, move |tx| {
            Box::pin(async move {
                sealed::insert_signing_key(&mut tx.conn, &key, tx.now).await?;
                sealed::retire_signing_keys(&mut tx.conn, env, &key.kid, tx.now).await?;
                let fact = Fact {
                    target_kind: "signing_key",
                    target_id: key.kid.clone(),
                    touched: vec![Touched::Directory],
                    ..Fact::default()
                };
                Ok(Outcome::Changed(key.kid, fact))
            })
        })
        .await
}

/// Removes a retired signing key; tokens that it signed are refused from then on.
///
/// # Errors
/// `NotFound` when there is no such key or it still signs.
pub async fn remove_signing_key(
    store: &Store,
    env: EnvId,
    context: &Context,
    kid: String,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::SigningKeyRemoved, move |tx| {
            Box::pin(async move {
                if !sealed::delete_signing_key(&mut tx.conn, env, &kid).await? {
                    return Err(Error::not_found("retired signing key"));
                }
                let fact = Fact {
                    target_kind: "signing_key",
                    target_id: kid,
                    touched: vec![Touched::Directory],
                    ..Fact::default()
                };
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

/// Makes a pepper known to the database, before the first secret is stored under it.
///
/// # Errors
/// `Conflict` when another pepper has this id.
pub async fn add_pepper(
    store: &Store,
    env: EnvId,
    context: &Context,
    pepper: Pepper,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::PepperRotated, move |tx| {
            Box::pin(async move {
                let check = Secrets::check_value(&pepper);
                sealed::insert_pepper(&mut tx.conn, pepper.id(), &check, tx.now).await?;
                let fact = Fact {
                    target_kind: "pepper",
                    target_id: pepper.id().to_string(),
                    touched: vec![Touched::Directory],
                    ..Fact::default()
                };
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

/// Forgets a pepper under which no live secret is stored.
///
/// # Errors
/// `Conflict` with the number of live secrets, `NotFound` for an unknown pepper.
pub async fn remove_pepper(
    store: &Store,
    env: EnvId,
    context: &Context,
    id: u32,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::PepperRemoved, move |tx| {
            Box::pin(async move {
                let live = sealed::secrets_under_pepper_any_environment(&mut tx.conn, id).await?;
                if live > 0 {
                    let public = format!(
                        "{live} live secrets are stored under pepper {id}; rotate or revoke them \
                         first, or they would be refused"
                    );
                    return Err(Error::conflict("PEPPER_IN_USE", public));
                }
                if !sealed::retire_pepper(&mut tx.conn, id, tx.now).await? {
                    return Err(Error::not_found("pepper"));
                }
                let fact = Fact {
                    target_kind: "pepper",
                    target_id: id.to_string(),
                    touched: vec![Touched::Directory],
                    ..Fact::default()
                };
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

/// The slug of the environment that every store has from the start.
pub(crate) const FIRST_ENVIRONMENT: &str = "default";

/// The name under which a restored store waits for the operator's word.
pub(crate) const RESTORE_PENDING: &str = "restore_pending";

/// Releases the keys of a restored store, whose later revocations nobody knows.
///
/// # Errors
/// `Conflict` when no restore waits.
pub async fn confirm_restore(
    store: &Store,
    env: EnvId,
    context: &Context,
) -> Result<Committed<()>> {
    store
        .write(env, context, Action::RestoreConfirmed, move |tx| {
            Box::pin(async move {
                let Some(since) = schema::meta(&mut tx.conn, RESTORE_PENDING).await? else {
                    let public = "no restore waits for a confirmation";
                    return Err(Error::conflict("NO_RESTORE", public));
                };
                schema::unset_meta(&mut tx.conn, RESTORE_PENDING).await?;
                let fact = Fact {
                    target_kind: "store",
                    before: Some(json!({ "revocations_unknown_since": since })),
                    touched: vec![Touched::Directory],
                    ..Fact::default()
                };
                Ok(Outcome::Changed((), fact))
            })
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_has_one_spelling() {
        let good = |text: &str| base_url(text).expect("good");
        assert_eq!(good("https://a.example/").1, "a.example");
        assert_eq!(good("https://A.example:443").1, "a.example");
        assert_eq!(good("http://127.0.0.1:8787").0, "http://127.0.0.1:8787");
        for bad in ["", "a.example", "ftp://a", "https://a/b", "https://u@a", "https://a?x"] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
        let error = base_url("https://ann:canary@a.example").expect_err("it has a user");
        assert!(!error.public.contains("canary"), "a password is repeated: {error}");
    }
}
