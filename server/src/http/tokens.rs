//! Recognising a caller's token that was checked before, without checking its signature again.
//!
//! An RSA signature takes 30 µs to check, several times as long as everything else about a
//! verification. So a token that was good is remembered: by the connection it came on, where one
//! comparison of its bytes is enough, and by a bounded cache for the whole process, found by a
//! keyed hash and confirmed by a full comparison. What is remembered is the token's own claim; what
//! its application may do *now* is read from the directory whenever that has changed.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};

use keyward_core::{AppId, EnvId};

use super::jwt;
use crate::clock::Clock;
use crate::directory::{Directory, Tenant};
use crate::scope::Scopes;

/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// A caller as an accepted token describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The application.
    pub app: AppId,
    /// What it may do at this moment.
    pub scopes: Scopes,
}

/// A token that was good when it was last looked at.
#[derive(Debug)]
pub struct Remembered {
    token: Box<[u8]>,
    env: EnvId,
    kid: String,
    issuer: String,
    /// What the token claims; the application may hold less by now.
    claimed: Scopes,
    /// Which of the application's tokens it is.
    of: i64,
    /// When it says it ends, µs since the epoch.
    says_until: i64,
    /// When it ends: its secret may end before it.
    expires_at: i64,
    /// The directory that `bearer` was read from.
    generation: u64,
    bearer: Bearer,
}

impl Remembered {
    /// The bearer, if this is `token` and nothing has changed since it was remembered.
    #[inline]
    pub fn recognises(
        &self,
        token: &[u8],
        env: EnvId,
        generation: u64,
        now: i64,
    ) -> Option<Bearer> {
        let same = self.generation == generation && self.env == env && *self.token == *token;
        (same && now < self.expires_at).then_some(self.bearer)
    }

    /// The same token under a newer directory: its key, issuer and application are looked up
    /// again, its signature is not.
    fn renewed(&self, directory: &Directory, tenant: &Tenant) -> Option<Self> {
        let known = tenant.keys.iter().any(|key| key.kid == self.kid);
        if !known || tenant.row.public_url != self.issuer {
            return None;
        }
        let client = directory.client(self.env, self.bearer.app)?;
        let expires_at = self.says_until.min(client.tokens_end_at(self.of)?);
        Some(Self {
            token: self.token.clone(),
            env: self.env,
            kid: self.kid.clone(),
            issuer: self.issuer.clone(),
            claimed: self.claimed,
            of: self.of,
            says_until: self.says_until,
            expires_at,
            generation: directory.generation,
            bearer: Bearer {
                app: self.bearer.app,
                scopes: self.claimed.intersection(client.management),
            },
        })
    }
}

/// The process's memory of good tokens, bounded.
pub struct TokenCache {
    max: usize,
    hasher: RandomState,
    known: Mutex<HashMap<u64, Arc<Remembered>>>,
}

impl TokenCache {
    /// Remembers at most `max` tokens.
    pub fn new(max: usize) -> Self {
        Self { max, hasher: RandomState::new(), known: Mutex::new(HashMap::new()) }
    }

    /// Who bears `token`, if it is good for `tenant` now.
    pub fn check(
        &self,
        directory: &Directory,
        tenant: &Tenant,
        token: &[u8],
        clock: &Clock,
    ) -> Option<Arc<Remembered>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (env, now) = (tenant.row.env, clock.now_us());
        let hash = self.hasher.hash_one(token);
        let known = self.lock().get(&hash).cloned();
        if let Some(known) = known
            && *known.token == *token
            && known.env == env
        {
            if known.recognises(token, env, directory.generation, now).is_some() {
                return Some(known);
            }
            let renewed = known.renewed(directory, tenant).filter(|r| now < r.expires_at);
            return match renewed {
                Some(renewed) => Some(self.remember(hash, renewed)),
                None => {
                    self.lock().remove(&hash);
                    None
                }
            };
        }
        let fresh = read(directory, tenant, token, now)?;
        Some(self.remember(hash, fresh))
    }

    fn remember(&self, hash: u64, remembered: Remembered) -> Arc<Remembered> {
        let remembered = Arc::new(remembered);
        let mut known = self.lock();
        if known.len() >= self.max && !known.contains_key(&hash) {
            // Full: forgetting all costs one signature check for each caller still there, and
            // needs no order to be kept on the path that only reads.
            known.clear();
        }
        known.insert(hash, Arc::clone(&remembered));
        remembered
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Remembered>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks a token from its first byte to its last claim.
fn read(directory: &Directory, tenant: &Tenant, token: &[u8], now: i64) -> Option<Remembered> {
    let text = std::str::from_utf8(token).ok()?;
    let (claims, kid) = jwt::verify(tenant, text)?;
    let audience = format!("{}/api", tenant.row.public_url);
    let says_until = claims.exp.checked_mul(1_000_000)?;
    if claims.iss != tenant.row.public_url || !claims.aud.has(&audience) {
        return None;
    }
    let app = AppId::parse(&claims.azp)?;
    let client = directory.client(tenant.row.env, app)?;
    let expires_at = says_until.min(client.tokens_end_at(claims.generation)?);
    if now >= expires_at {
        return None;
    }
    let claimed = Scopes::of(claims.scope.split(' '));
    Some(Remembered {
        token: token.into(),
        env: tenant.row.env,
        kid,
        issuer: claims.iss,
        claimed,
        of: claims.generation,
        says_until,
        expires_at,
        generation: directory.generation,
        bearer: Bearer { app, scopes: claimed.intersection(client.management) },
    })
}
