//! The question: what a caller presented, and what it must be good for.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use crate::secret::Secret;

/// What a caller presented, and what the key must be good for.
///
/// Only the key is needed; each further method narrows what counts as valid, or says more about the
/// call for the access record. The key is not printed by `Debug`.
#[derive(Debug, Clone, Serialize)]
pub struct Presented {
    #[serde(rename = "api_key", serialize_with = "plain_text")]
    key: Secret,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audience: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) scopes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) org_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
}

/// The request to Keyward is the one place where the key leaves in plain text.
fn plain_text<S: Serializer>(key: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(key.expose())
}

impl Presented {
    /// A key as the caller sent it. It is not inspected here: what is not a key is the server's to
    /// refuse, so that every refusal is counted in one place.
    pub fn new(key: impl Into<String>) -> Self {
        Self {
            key: Secret::new(key),
            api_id: None,
            audience: None,
            scopes: Vec::new(),
            user_id: None,
            org_code: None,
            ip: None,
            resource: None,
            user_agent: None,
        }
    }

    /// The key in an `Authorization` header: `Bearer <key>`, the scheme in any case (RFC 9110,
    /// §11.1). `None` where the header holds something else or nothing.
    pub fn from_authorization(header: &str) -> Option<Self> {
        let (scheme, key) = header.trim().split_once(' ')?;
        let key = key.trim_start();
        (scheme.eq_ignore_ascii_case("bearer") && !key.is_empty()).then(|| Self::new(key))
    }

    /// The API that asks, by its id; a key of another API is refused. Replaces the builder's
    /// [`audience`](crate::Builder::audience) for this call.
    #[must_use]
    pub fn api_id(mut self, api_id: impl Into<String>) -> Self {
        self.api_id = Some(api_id.into());
        self
    }

    /// The API that asks, by its audience; a key of another API is refused. Replaces the builder's
    /// [`audience`](crate::Builder::audience) for this call.
    #[must_use]
    pub fn audience(mut self, audience: impl Into<String>) -> Self {
        self.audience = Some(audience.into());
        self
    }

    /// One scope that the call needs; may be said several times, and all are needed.
    #[must_use]
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scopes.push(scope.into());
        self
    }

    /// The scopes that the call needs; all of them are.
    #[must_use]
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.scopes.extend(scopes.into_iter().map(Into::into));
        self
    }

    /// The user that the key must belong to.
    #[must_use]
    pub fn user_id(mut self, user_id: impl Into<String>) -> Self {
        self.user_id = Some(user_id.into());
        self
    }

    /// The organization that the key must belong to.
    #[must_use]
    pub fn org_code(mut self, org_code: impl Into<String>) -> Self {
        self.org_code = Some(org_code.into());
        self
    }

    /// The key holder's address, as this API saw it. Without it a key that is limited to addresses
    /// is refused, and `last_verified_ip` stays empty: the connection's own address is this API's.
    #[must_use]
    pub fn ip(mut self, ip: IpAddr) -> Self {
        self.ip = Some(ip);
        self
    }

    /// What is being accessed, in free text, for the access record.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// The caller's `User-Agent`, for the access record.
    #[must_use]
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = Some(user_agent.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_header_holds_a_key() {
        let key = |header| Presented::from_authorization(header).map(|presented| presented.key);
        assert_eq!(key("Bearer k_live_1"), Some(Secret::new("k_live_1")));
        assert_eq!(key("bearer   k_live_1 "), Some(Secret::new("k_live_1")));
        for header in ["", "Bearer", "Bearer ", "Basic azpi", "k_live_1"] {
            assert_eq!(key(header), None, "{header:?}");
        }
    }

    #[test]
    fn a_presented_key_is_not_printed() {
        let presented = Presented::new("k_live_canary").scope("read:reports");
        let printed = format!("{presented:?} {presented:#?}");
        assert!(!printed.contains("canary"), "{printed}");
        assert!(printed.contains("read:reports"), "{printed}");
    }

    #[test]
    fn what_was_not_said_is_not_sent() {
        let body = serde_json::to_value(Presented::new("k")).expect("a plain structure");
        assert_eq!(body, serde_json::json!({ "api_key": "k" }));
    }
}
