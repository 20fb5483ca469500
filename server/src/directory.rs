//! The directory: environments, applications, signing keys; what a request needs besides keys.
//!
//! An immutable snapshot that the follower replaces as a whole when one of its rows changes, so a
//! request reads it without a lock and never sees half a change. It is small (a row for each
//! environment, application and signing key), so reading all of it again is cheap.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
};
use keyward_core::{ApiId, AppId, Digest, EnvId};

use crate::error::{Error, Result};
use crate::ops::environments::RESTORE_PENDING;
use crate::scope::Scopes;
use crate::secrets::Secrets;
use crate::store::environments::Environment;
use crate::store::sealed::SigningKey;
use crate::store::{Conn, apis, applications, environments, schema, sealed};

/// One snapshot of the directory.
#[derive(Default)]
pub struct Directory {
    /// Told apart from the snapshots before it by those who cache what they read here.
    pub generation: u64,
    tenants: HashMap<EnvId, Arc<Tenant>>,
    by_host: HashMap<String, Arc<Tenant>>,
    clients: HashMap<AppId, Arc<Client>>,
}

/// An environment with its signing keys and audiences.
pub struct Tenant {
    /// Its row.
    pub row: Environment,
    /// Signing keys, the newest first.
    pub keys: Vec<VerifyingKey>,
    signer: Option<Signer>,
    /// The live APIs by audience.
    pub audiences: HashMap<String, ApiId>,
    /// The management API.
    pub management: Option<ApiId>,
    /// Whether a restore waits for the operator's word; keys then get no verdict.
    pub withheld: bool,
}

/// The public half of a signing key.
pub struct VerifyingKey {
    /// Its name in tokens: letters and digits only.
    pub kid: String,
    /// RSA modulus, big-endian.
    pub n: Vec<u8>,
    /// RSA public exponent, big-endian.
    pub e: Vec<u8>,
}

impl VerifyingKey {
    /// Whether `signature` over `message` is by this key (RS256).
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        RsaPublicKeyComponents { n: &self.n, e: &self.e }
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok()
    }
}

struct Signer {
    kid: String,
    pair: RsaKeyPair,
}

impl Tenant {
    /// Signs `message` with the newest key (RS256): the signature and the key's name.
    ///
    /// # Errors
    /// `Internal` when the environment has no key to sign with.
    pub fn sign(&self, message: impl Fn(&str) -> String) -> Result<(String, Vec<u8>)> {
        let signer = self.signer.as_ref().ok_or_else(|| Error::internal("no signing key"))?;
        let text = message(&signer.kid);
        let mut signature = vec![0; signer.pair.public_modulus_len()];
        signer
            .pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| Error::internal("signing failed"))?;
        Ok((text, signature))
    }
}

/// A live application.
pub struct Client {
    /// Its id.
    pub app: AppId,
    /// Its environment.
    pub env: EnvId,
    /// Whether it may act.
    pub enabled: bool,
    /// Its scopes on the management API.
    pub management: Scopes,
    /// Its scopes on each API that it is connected to.
    pub scopes: HashMap<ApiId, Vec<String>>,
    secrets: Vec<ClientSecret>,
}

struct ClientSecret {
    digest: Digest,
    pepper_id: u32,
    expires_at: Option<i64>,
    generation: i64,
}

impl Client {
    /// If `secret` is one of the application's at `now` µs since the epoch: the generation of the
    /// tokens that are got with it. Every stored digest is compared, so that the time taken says
    /// nothing.
    pub fn knows(&self, secret: &str, secrets: &Secrets, now: i64) -> Option<i64> {
        let peppers = secrets.peppers();
        let mut known = None;
        for stored in &self.secrets {
            for pepper in peppers.iter().filter(|pepper| pepper.id() == stored.pepper_id) {
                let same = pepper.digest(secret.as_bytes()) == stored.digest;
                if same && stored.expires_at.is_none_or(|at| now < at) {
                    known = Some(stored.generation);
                }
            }
        }
        known
    }

    /// Until when tokens of `generation` are good, µs since the epoch: as long as the secret that
    /// they were got with. `None` when they have ended, and while the application may not act.
    pub fn tokens_end_at(&self, generation: i64) -> Option<i64> {
        let of = self.secrets.iter().find(|secret| secret.generation == generation)?;
        self.enabled.then(|| of.expires_at.unwrap_or(i64::MAX))
    }
}

impl Directory {
    /// Reads the directory.
    ///
    /// # Errors
    /// `Invalid` when the secrets file does not open a signing key: it belongs to another store.
    pub(crate) async fn load(conn: &mut Conn, secrets: &Secrets, generation: u64) -> Result<Self> {
        let withheld = schema::meta(conn, RESTORE_PENDING).await?.is_some();
        let mut signing = sealed::signing_keys_any_environment(conn).await?;
        let apis = apis::all_any_environment(conn).await?;
        let mut directory = Self { generation, ..Self::default() };
        for row in environments::all_any_environment(conn).await? {
            let own: Vec<SigningKey> = signing.extract_if(.., |key| key.env == row.env).collect();
            let live = || apis.iter().filter(|api| api.env == row.env && api.deleted_at.is_none());
            let tenant = Arc::new(Tenant {
                signer: signer(&own, secrets)?,
                keys: own
                    .into_iter()
                    .map(|key| VerifyingKey { kid: key.kid, n: key.n, e: key.e })
                    .collect(),
                audiences: live().map(|api| (api.audience.clone(), api.api)).collect(),
                management: live().find(|api| api.is_management).map(|api| api.api),
                withheld,
                row,
            });
            directory.by_host.insert(tenant.row.host.clone(), Arc::clone(&tenant));
            directory.tenants.insert(tenant.row.env, tenant);
        }
        directory.clients = clients(conn, &directory.tenants).await?;
        Ok(directory)
    }

    /// The environment that answers at `host`. While there is only one, it answers everywhere.
    pub fn by_host(&self, host: &str) -> Option<&Arc<Tenant>> {
        if self.tenants.len() == 1 {
            return self.tenants.values().next();
        }
        self.by_host.get(host).or_else(|| {
            let host = host.to_ascii_lowercase();
            let bare = host.strip_suffix(":443").or_else(|| host.strip_suffix(":80"));
            self.by_host.get(bare.unwrap_or(&host))
        })
    }

    /// Whether nothing has been read yet.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// An environment by its id.
    pub fn tenant(&self, env: EnvId) -> Option<&Arc<Tenant>> {
        self.tenants.get(&env)
    }

    /// Every environment.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.values()
    }

    /// A live application of `env`.
    pub fn client(&self, env: EnvId, app: AppId) -> Option<&Arc<Client>> {
        self.clients.get(&app).filter(|client| client.env == env)
    }
}

fn signer(keys: &[SigningKey], secrets: &Secrets) -> Result<Option<Signer>> {
    let Some(key) = keys.iter().find(|key| key.retired_at.is_none()) else {
        return Ok(None);
    };
    let private = secrets.open(&key.kid, &key.private_sealed).ok_or_else(|| {
        let public = "the secrets file does not belong to this store: it cannot open the signing \
                      key; name the right one with --secrets-file";
        Error::invalid("WRONG_SECRETS_FILE", public)
    })?;
    let pair = RsaKeyPair::from_pkcs8(&private)
        .map_err(|_| Error::internal("a signing key in the database cannot be read"))?;
    Ok(Some(Signer { kid: key.kid.clone(), pair }))
}

async fn clients(
    conn: &mut Conn,
    tenants: &HashMap<EnvId, Arc<Tenant>>,
) -> Result<HashMap<AppId, Arc<Client>>> {
    let mut clients: HashMap<AppId, Client> = HashMap::new();
    for row in applications::all_any_environment(conn).await? {
        let client = Client {
            app: row.app,
            env: row.env,
            enabled: row.disabled_at.is_none(),
            management: Scopes::default(),
            scopes: HashMap::new(),
            secrets: Vec::new(),
        };
        clients.insert(row.app, client);
    }
    for (app, api) in applications::connections_any_environment(conn).await? {
        if let Some(client) = clients.get_mut(&app) {
            client.scopes.entry(api).or_default();
        }
    }
    for grant in applications::grants_any_environment(conn).await? {
        if let Some(client) = clients.get_mut(&grant.app) {
            client.scopes.entry(grant.api).or_default().push(grant.scope_key);
        }
    }
    for secret in applications::secrets_any_environment(conn).await? {
        if let Some(client) = clients.get_mut(&secret.app) {
            client.secrets.push(ClientSecret {
                digest: secret.digest,
                pepper_id: secret.pepper_id,
                expires_at: secret.expires_at,
                generation: secret.generation,
            });
        }
    }
    for client in clients.values_mut() {
        let management = tenants.get(&client.env).and_then(|tenant| tenant.management);
        if let Some(scopes) = management.and_then(|api| client.scopes.get(&api)) {
            client.management = Scopes::of(scopes.iter().map(String::as_str));
        }
    }
    Ok(clients.into_iter().map(|(app, client)| (app, Arc::new(client))).collect())
}
