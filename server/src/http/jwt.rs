//! Management tokens: JWTs signed with RS256 (RFC 7515, 7519), and nothing else.
//!
//! Only one algorithm exists here, so there is none to be talked into: a header that says anything
//! else than RS256 is refused before its key is looked for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::directory::Tenant;
use crate::error::Result;

/// What a token says of its bearer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: Audience,
    /// The application.
    pub(crate) azp: String,
    /// Seconds since the epoch.
    pub(crate) exp: i64,
    /// Seconds since the epoch.
    pub(crate) iat: i64,
    pub(crate) jti: String,
    /// Space separated.
    pub(crate) scope: String,
    #[serde(default)]
    pub(crate) gty: Vec<String>,
    /// Which of the application's secrets it was got with, and since when that one's tokens count:
    /// exact, where `iat` has whole seconds.
    pub(crate) generation: i64,
}

/// One audience or several; ours are always written as a list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Audience {
    Several(Vec<String>),
    One(String),
}

impl Audience {
    /// Whether `audience` is among them.
    pub(crate) fn has(&self, audience: &str) -> bool {
        match self {
            Audience::Several(all) => all.iter().any(|one| one == audience),
            Audience::One(one) => one == audience,
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    /// Extensions that must be understood; none is.
    crit: Option<serde::de::IgnoredAny>,
}

/// Signs `claims` with the environment's newest key.
///
/// # Errors
/// `Internal` when it has none.
pub(crate) fn sign(tenant: &Tenant, claims: &Claims) -> Result<String> {
    let body = URL_SAFE_NO_PAD.encode(
        serde_json::to_vec(claims).expect("claims are texts and numbers, which JSON can hold"),
    );
    let (mut text, signature) = tenant.sign(|kid| {
        let header = format!("{{\"alg\":\"RS256\",\"kid\":\"{kid}\",\"typ\":\"JWT\"}}");
        format!("{}.{body}", URL_SAFE_NO_PAD.encode(header))
    })?;
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut text);
    Ok(text)
}

/// The claims of `token` and the name of the key that signed it, if one of the environment did.
/// Whether the claims suit the moment and the question is for the caller to say.
pub(crate) fn verify(tenant: &Tenant, token: &str) -> Option<(Claims, String)> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, body) = signed.split_once('.')?;
    let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    if header.alg != "RS256" || header.crit.is_some() {
        return None;
    }
    let key = tenant.keys.iter().find(|key| key.kid == header.kid)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    if !key.verifies(signed.as_bytes(), &signature) {
        return None;
    }
    let claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
    Some((claims, header.kid))
}
