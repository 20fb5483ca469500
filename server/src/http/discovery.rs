//! Discovery: the issuer's metadata (RFC 8414, OpenID Connect Discovery) and its public keys.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::call::{Call, Reply};
use crate::error::Result;
use crate::scope::Scope;

/// `GET /.well-known/jwks` and `/.well-known/jwks.json` (RFC 7517): the newest key first.
pub(crate) async fn jwks(call: Call) -> Result<Reply> {
    let keys: Vec<Value> = call
        .tenant
        .keys
        .iter()
        .map(|key| {
            json!({
                "kty": "RSA",
                "use": "sig",
                "alg": "RS256",
                "kid": key.kid,
                "n": URL_SAFE_NO_PAD.encode(&key.n),
                "e": URL_SAFE_NO_PAD.encode(&key.e),
            })
        })
        .collect();
    Ok(Reply::ok(json!({ "keys": keys })))
}

/// `GET /.well-known/openid-configuration` and `/.well-known/oauth-authorization-server`.
pub(crate) async fn metadata(call: Call) -> Result<Reply> {
    let issuer = &call.tenant.row.public_url;
    let scopes: Vec<&str> = Scope::ALL.iter().map(|scope| scope.word()).collect();
    Ok(Reply::ok(json!({
        "issuer": issuer,
        "token_endpoint": format!("{issuer}/oauth2/token"),
        "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "scopes_supported": scopes,
    })))
}
