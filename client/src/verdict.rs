//! The answer, and how it is read.
//!
//! Lenient where leniency cannot turn a no into a yes: unknown fields and unknown reasons survive,
//! fields that are missing are `None`. Strict where a guess could: a verdict without a clear
//! `is_valid`, a grant without a key or without the owner that its type promises, and an answer
//! that does not meet what the question demanded are not grants.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::Error;
use crate::presented::Presented;

/// What Keyward said about a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The key is good for what was asked.
    Valid(Grant),
    /// The key is not good for what was asked.
    Refused(Refusal),
}

impl Verdict {
    /// The grant, where there is one.
    pub fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Valid(grant) => Some(grant),
            Self::Refused(_) => None,
        }
    }
}

/// What a valid key may do, and for whom.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Grant {
    /// The key's stable id (`api_key_…`); it stays the same when the secret is rotated.
    pub key_id: String,
    /// The key's name, given by whoever issued it.
    pub name: Option<String>,
    /// Whose key it is.
    pub owner: Owner,
    /// The API that the key is for.
    pub api_id: Option<String>,
    /// What the key may do right now.
    pub scopes: Vec<String>,
    /// How often the key was verified, this time included. With several nodes it is a lower bound.
    pub verification_count: Option<u64>,
    /// The time of this verification, RFC 3339 in UTC.
    pub last_verified_on: Option<String>,
    /// When the key ends, RFC 3339 in UTC.
    pub expires_on: Option<String>,
    /// What the issuer noted on the key.
    pub metadata: Map<String, Value>,
    /// Every further field of the answer, unread.
    pub extra: Map<String, Value>,
}

impl Grant {
    /// The user whose key it is; `None` for a key of an organization or of the environment. An API
    /// that acts for a user must refuse a call without one.
    pub fn user_id(&self) -> Option<&str> {
        match &self.owner {
            Owner::User { user_id, .. } => Some(user_id),
            Owner::Organization { .. } | Owner::Environment | Owner::Other { .. } => None,
        }
    }

    /// The organization that the key belongs to or was issued in.
    pub fn org_code(&self) -> Option<&str> {
        match &self.owner {
            Owner::User { org_code, .. } => org_code.as_deref(),
            Owner::Organization { org_code } => Some(org_code),
            Owner::Environment | Owner::Other { .. } => None,
        }
    }

    /// Whether the key has this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.iter().any(|held| held == scope)
    }
}

/// Whose key it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Owner {
    /// One user, inside an organization if the key was issued there.
    User {
        /// The id from the operator's identity provider.
        user_id: String,
        /// The organization that the key was issued in.
        org_code: Option<String>,
    },
    /// An organization as a whole.
    Organization {
        /// The organization's code.
        org_code: String,
    },
    /// The environment itself: nobody's in particular.
    Environment,
    /// A kind of owner that this version does not know.
    Other {
        /// The kind, as Keyward named it.
        kind: String,
        /// The `user_id` of the answer.
        user_id: Option<String>,
        /// The `org_code` of the answer.
        org_code: Option<String>,
    },
}

/// Why a key was refused, and what may be known about it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Keyward's words for it, for people.
    pub message: String,
    /// The key, where the secret was one of Keyward's; a guess learns nothing.
    pub key_id: Option<String>,
    /// `active`, `inactive` or `revoked`; expiry and suspension do not change it.
    pub status: Option<String>,
    /// The user whose key it is.
    pub user_id: Option<String>,
    /// The organization whose key it is.
    pub org_code: Option<String>,
    /// The scopes that were asked for and are not held.
    pub missing_scopes: Vec<String>,
    /// When it makes sense to try again, for a rate limit or a quota.
    pub retry_after: Option<Duration>,
    /// Every further field of the answer, unread.
    pub extra: Map<String, Value>,
}

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Malformed, or not one of Keyward's.
    Invalid,
    /// Revoked for good, or its owner or API was deleted.
    Revoked,
    /// A secret that a rotation replaced.
    Rotated,
    /// Switched off; may be switched on again.
    Inactive,
    /// Its first moment has not come.
    NotYetValid,
    /// Its last moment has passed.
    Expired,
    /// Its owner is suspended or has left the organization.
    OwnerSuspended,
    /// A key of another API.
    WrongApi,
    /// A key of somebody else.
    WrongOwner,
    /// Without a scope that was asked for.
    InsufficientScope,
    /// Not from this address.
    AddressNotAllowed,
    /// Too many calls just now.
    RateLimited,
    /// Too many calls in this period.
    QuotaExceeded,
    /// A code that this version does not know. It is a refusal all the same.
    Other(String),
}

impl Reason {
    fn from_code(code: &str) -> Self {
        match code {
            "API_KEY_INVALID" => Self::Invalid,
            "API_KEY_REVOKED" => Self::Revoked,
            "API_KEY_ROTATED" => Self::Rotated,
            "API_KEY_INACTIVE" => Self::Inactive,
            "API_KEY_NOT_YET_VALID" => Self::NotYetValid,
            "API_KEY_EXPIRED" => Self::Expired,
            "API_KEY_OWNER_SUSPENDED" => Self::OwnerSuspended,
            "API_KEY_WRONG_API" => Self::WrongApi,
            "API_KEY_WRONG_OWNER" => Self::WrongOwner,
            "API_KEY_INSUFFICIENT_SCOPE" => Self::InsufficientScope,
            "API_KEY_ADDRESS_NOT_ALLOWED" => Self::AddressNotAllowed,
            "API_KEY_RATE_LIMITED" => Self::RateLimited,
            "API_KEY_QUOTA_EXCEEDED" => Self::QuotaExceeded,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The code on the wire.
    pub fn code(&self) -> &str {
        match self {
            Self::Invalid => "API_KEY_INVALID",
            Self::Revoked => "API_KEY_REVOKED",
            Self::Rotated => "API_KEY_ROTATED",
            Self::Inactive => "API_KEY_INACTIVE",
            Self::NotYetValid => "API_KEY_NOT_YET_VALID",
            Self::Expired => "API_KEY_EXPIRED",
            Self::OwnerSuspended => "API_KEY_OWNER_SUSPENDED",
            Self::WrongApi => "API_KEY_WRONG_API",
            Self::WrongOwner => "API_KEY_WRONG_OWNER",
            Self::InsufficientScope => "API_KEY_INSUFFICIENT_SCOPE",
            Self::AddressNotAllowed => "API_KEY_ADDRESS_NOT_ALLOWED",
            Self::RateLimited => "API_KEY_RATE_LIMITED",
            Self::QuotaExceeded => "API_KEY_QUOTA_EXCEEDED",
            Self::Other(code) => code,
        }
    }

    /// The status that a protected API would answer its own caller with: 401 where another key is
    /// needed, 403 where this key may not do this, 429 where waiting helps. A reason that is not
    /// known is 401.
    pub fn http_status(&self) -> u16 {
        match self {
            Self::Invalid
            | Self::Revoked
            | Self::Rotated
            | Self::Inactive
            | Self::NotYetValid
            | Self::Expired
            | Self::OwnerSuspended
            | Self::Other(_) => 401,
            Self::WrongApi
            | Self::WrongOwner
            | Self::InsufficientScope
            | Self::AddressNotAllowed => 403,
            Self::RateLimited | Self::QuotaExceeded => 429,
        }
    }
}

/// Reads the body of a 200 as the verdict on this question.
pub(crate) fn read(body: &[u8], asked: &Presented) -> Result<Verdict, Error> {
    let answer: Value = serde_json::from_slice(body)
        .map_err(|cause| Error::bad_reply("the body is not JSON").caused_by(cause))?;
    let Value::Object(fields) = answer else {
        return Err(Error::bad_reply("the body is not a JSON object"));
    };
    let mut fields = Fields(fields);
    let is_valid = match fields.0.remove("is_valid") {
        Some(Value::Bool(is_valid)) => is_valid,
        _ => return Err(Error::bad_reply("`is_valid` is not true or false")),
    };
    let code = fields.text("code")?.unwrap_or_default();
    let message = fields.text("message")?.unwrap_or_default();
    let reason = Reason::from_code(&code);
    if is_valid {
        if !matches!(reason, Reason::Other(_)) {
            return Err(Error::bad_reply(format!("it says valid and {code} at once")));
        }
        fields.grant(asked)
    } else {
        fields.refusal(reason, message).map(Verdict::Refused)
    }
}

/// The fields that were not read yet.
struct Fields(Map<String, Value>);

impl Fields {
    /// A text, `None` where it is null or missing.
    fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.0.remove(name) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Null) | None => Ok(None),
            Some(_) => Err(Error::bad_reply(format!("`{name}` is not a text"))),
        }
    }

    /// A list of texts, empty where it is null or missing.
    fn texts(&mut self, name: &str) -> Result<Vec<String>, Error> {
        match self.0.remove(name) {
            Some(Value::Null) | None => Ok(Vec::new()),
            Some(list) => serde_json::from_value(list)
                .map_err(|_| Error::bad_reply(format!("`{name}` is not a list of texts"))),
        }
    }

    /// A member that no decision hangs on: what is not of the shape is as good as missing.
    fn lenient<T: serde::de::DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        serde_json::from_value(self.0.remove(name)?).ok()
    }

    fn grant(mut self, asked: &Presented) -> Result<Verdict, Error> {
        let Some(key_id) = self.text("key_id")? else {
            return Err(Error::bad_reply("it says valid and does not name the key"));
        };
        let owner = self.owner()?;
        let scopes = self.texts("scopes")?;
        let api_id = self.text("api_id")?;
        let grant = Grant {
            key_id,
            name: self.lenient("name"),
            owner,
            api_id,
            scopes,
            verification_count: self.lenient("verification_count"),
            last_verified_on: self.lenient("last_verified_on"),
            expires_on: self.lenient("expires_on"),
            metadata: self.lenient("metadata").unwrap_or_default(),
            extra: self.0,
        };
        check(grant, asked)
    }

    fn owner(&mut self) -> Result<Owner, Error> {
        let user_id = self.text("user_id")?;
        let org_code = self.text("org_code")?;
        let kind = self.text("type")?;
        match (kind.as_deref(), user_id, org_code) {
            (Some("user") | None, Some(user_id), org_code) => Ok(Owner::User { user_id, org_code }),
            (Some("organization") | None, None, Some(org_code)) => {
                Ok(Owner::Organization { org_code })
            }
            (Some("environment") | None, None, None) => Ok(Owner::Environment),
            (Some("user" | "organization" | "environment"), _, _) => {
                Err(Error::bad_reply("the owner is not of the key's type"))
            }
            (Some(kind), user_id, org_code) => {
                Ok(Owner::Other { kind: kind.to_owned(), user_id, org_code })
            }
        }
    }

    fn refusal(mut self, reason: Reason, message: String) -> Result<Refusal, Error> {
        let mut detail: Map<String, Value> = self.lenient("refusal").unwrap_or_default();
        let missing_scopes = detail
            .remove("missing_scopes")
            .and_then(|list| serde_json::from_value(list).ok())
            .unwrap_or_default();
        let retry_after = detail
            .remove("retry_after_seconds")
            .and_then(|seconds| seconds.as_f64())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        if !detail.is_empty() {
            self.0.insert("refusal".to_owned(), Value::Object(detail));
        }
        Ok(Refusal {
            reason,
            message,
            key_id: self.lenient("key_id"),
            status: self.lenient("status"),
            user_id: self.lenient("user_id"),
            org_code: self.lenient("org_code"),
            missing_scopes,
            retry_after,
            extra: self.0,
        })
    }
}

/// Compares a grant with what was demanded.
///
/// Keyward ignores fields of a verify request that it does not know, as the contract says, so a
/// server older than this client could answer "valid" to a demand that it never looked at. What the
/// answer lets us see is therefore checked again. The address cannot be.
fn check(grant: Grant, asked: &Presented) -> Result<Verdict, Error> {
    let wrong_api = match (&asked.api_id, &asked.audience, &grant.api_id) {
        (None, None, _) => false,
        (_, _, None) => {
            return Err(Error::bad_reply("it does not say which API the key is for"));
        }
        (Some(wanted), _, Some(api_id)) => wanted != api_id,
        (None, Some(_), Some(_)) => false,
    };
    let (user_id, org_code) = match &grant.owner {
        Owner::User { user_id, org_code } => (Some(user_id), org_code.as_ref()),
        Owner::Organization { org_code } => (None, Some(org_code)),
        Owner::Environment | Owner::Other { .. } => (None, None),
    };
    let wrong_owner = asked.user_id.as_ref().is_some_and(|wanted| Some(wanted) != user_id)
        || asked.org_code.as_ref().is_some_and(|wanted| Some(wanted) != org_code);
    let missing_scopes: Vec<String> =
        asked.scopes.iter().filter(|scope| !grant.has_scope(scope)).cloned().collect();
    // The order is the contract's order of precedence.
    let reason = if wrong_api {
        Reason::WrongApi
    } else if wrong_owner {
        Reason::WrongOwner
    } else if !missing_scopes.is_empty() {
        Reason::InsufficientScope
    } else {
        return Ok(Verdict::Valid(grant));
    };
    Ok(Verdict::Refused(Refusal {
        reason,
        message: "The key is valid, but not for what was asked.".to_owned(),
        user_id: user_id.cloned(),
        org_code: org_code.cloned(),
        key_id: Some(grant.key_id),
        status: None,
        missing_scopes,
        retry_after: None,
        extra: grant.extra,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;

    fn valid() -> Value {
        json!({
            "code": "API_KEY_VERIFIED", "message": "API key verified", "is_valid": true,
            "key_id": "api_key_1", "status": "active", "scopes": ["read:reports"],
            "org_code": null, "user_id": "kp_1", "last_verified_on": "2026-11-22T21:24:03.512Z",
            "verification_count": 42, "api_id": "a1", "type": "user",
        })
    }

    fn with(name: &str, value: Value) -> Value {
        let mut answer = valid();
        answer[name] = value;
        answer
    }

    fn read_value(answer: &Value, asked: &Presented) -> Result<Verdict, Error> {
        read(answer.to_string().as_bytes(), asked)
    }

    fn ask() -> Presented {
        Presented::new("k")
    }

    #[test]
    fn a_valid_answer_names_its_owner_and_keeps_what_is_unknown() {
        let answer = with("shoe_size", json!({ "eu": 43 }));
        let verdict = read_value(&answer, &ask()).expect("a verdict");
        let grant = verdict.grant().expect("a grant");
        assert_eq!(grant.user_id(), Some("kp_1"));
        assert_eq!(grant.verification_count, Some(42));
        assert!(grant.has_scope("read:reports") && !grant.has_scope("read:report"));
        assert_eq!(grant.extra["shoe_size"]["eu"], 43);
    }

    #[test]
    fn an_answer_that_is_not_clearly_a_yes_is_never_a_grant() {
        for answer in [
            json!({}),
            json!([]),
            json!("valid"),
            json!({ "is_valid": true }),
            with("is_valid", json!("true")),
            with("is_valid", json!(1)),
            with("is_valid", json!(null)),
            with("code", json!("API_KEY_REVOKED")),
            with("key_id", json!(null)),
            with("user_id", json!(null)),
            with("user_id", json!(7)),
            with("type", json!("organization")),
            with("type", json!("environment")),
            with("scopes", json!("read:reports")),
            with("scopes", json!([1])),
        ] {
            let error = read_value(&answer, &ask()).expect_err(&answer.to_string());
            assert_eq!(error.kind(), ErrorKind::BadReply, "{answer}");
        }
    }

    #[test]
    fn the_owner_follows_from_the_ids_where_the_type_is_not_said() {
        let owner = |user_id: Value, org_code: Value, kind: Value| {
            let mut answer = with("type", kind);
            answer["user_id"] = user_id;
            answer["org_code"] = org_code;
            let verdict = read_value(&answer, &ask()).expect("a verdict");
            verdict.grant().expect("a grant").owner.clone()
        };
        let user = |org_code: Option<&str>| Owner::User {
            user_id: "u".to_owned(),
            org_code: org_code.map(str::to_owned),
        };
        let organization = Owner::Organization { org_code: "o".to_owned() };
        assert_eq!(owner(json!("u"), json!(null), json!(null)), user(None));
        assert_eq!(owner(json!("u"), json!("o"), json!(null)), user(Some("o")));
        assert_eq!(owner(json!("u"), json!("o"), json!("user")), user(Some("o")));
        assert_eq!(owner(json!(null), json!("o"), json!(null)), organization);
        assert_eq!(owner(json!(null), json!(null), json!("environment")), Owner::Environment);
        let agent = owner(json!("u"), json!(null), json!("agent"));
        assert!(matches!(agent, Owner::Other { kind, .. } if kind == "agent"));
    }

    #[test]
    fn an_unknown_reason_is_a_refusal_that_keeps_its_code() {
        let answer = json!({ "is_valid": false, "code": "API_KEY_TIRED", "mood": "low" });
        let Ok(Verdict::Refused(refusal)) = read_value(&answer, &ask()) else {
            panic!("not a refusal");
        };
        assert_eq!(refusal.reason, Reason::Other("API_KEY_TIRED".to_owned()));
        assert_eq!(refusal.reason.code(), "API_KEY_TIRED");
        assert_eq!(refusal.reason.http_status(), 401);
        assert_eq!(refusal.extra["mood"], "low");
    }

    #[test]
    fn a_refusal_survives_details_of_an_unexpected_shape() {
        let answer = json!({
            "is_valid": false, "code": "API_KEY_RATE_LIMITED", "key_id": 7,
            "refusal": { "retry_after_seconds": 1.5, "missing_scopes": "none", "limit": "minute" },
        });
        let Ok(Verdict::Refused(refusal)) = read_value(&answer, &ask()) else {
            panic!("not a refusal");
        };
        assert_eq!(refusal.reason, Reason::RateLimited);
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(1500)));
        assert_eq!(refusal.extra["refusal"]["limit"], "minute");
    }

    #[test]
    fn every_known_reason_keeps_its_code() {
        for code in [
            "API_KEY_INVALID",
            "API_KEY_REVOKED",
            "API_KEY_ROTATED",
            "API_KEY_INACTIVE",
            "API_KEY_NOT_YET_VALID",
            "API_KEY_EXPIRED",
            "API_KEY_OWNER_SUSPENDED",
            "API_KEY_WRONG_API",
            "API_KEY_WRONG_OWNER",
            "API_KEY_INSUFFICIENT_SCOPE",
            "API_KEY_ADDRESS_NOT_ALLOWED",
            "API_KEY_RATE_LIMITED",
            "API_KEY_QUOTA_EXCEEDED",
        ] {
            let reason = Reason::from_code(code);
            assert!(!matches!(reason, Reason::Other(_)), "{code}");
            assert_eq!(reason.code(), code);
        }
    }

    #[test]
    fn a_demand_that_the_server_passed_over_is_refused_here() {
        let reason = |asked: Presented| match read_value(&valid(), &asked).expect("a verdict") {
            Verdict::Valid(_) => None,
            Verdict::Refused(refusal) => Some((refusal.reason, refusal.missing_scopes)),
        };
        let none = Vec::new;
        assert_eq!(reason(ask().scope("read:reports").user_id("kp_1").api_id("a1")), None);
        assert_eq!(reason(ask().audience("https://api.example.com")), None);
        assert_eq!(reason(ask().api_id("a2")), Some((Reason::WrongApi, none())));
        assert_eq!(reason(ask().user_id("kp_2")), Some((Reason::WrongOwner, none())));
        assert_eq!(reason(ask().org_code("org_1")), Some((Reason::WrongOwner, none())));
        assert_eq!(
            reason(ask().scopes(["read:reports", "write:reports"])),
            Some((Reason::InsufficientScope, vec!["write:reports".to_owned()]))
        );
    }

    #[test]
    fn an_answer_that_does_not_say_which_api_it_is_for_is_no_grant_to_an_api_that_asked() {
        let error = read_value(&with("api_id", json!(null)), &ask().audience("https://a.example"));
        assert_eq!(error.expect_err("no verdict").kind(), ErrorKind::BadReply);
    }
}
