//! Errors as answers: status, headers and the envelope that published clients decode.

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use serde_json::{Value, json};

use super::call::{Answer, json_answer};
use crate::directory::Directory;
use crate::error::{Error, Kind, UNCONFIRMED};

/// Seconds after which a caller may ask again when Keyward could not know.
const RETRY_AFTER_SECONDS: u32 = 1;

/// `error` as an answer.
pub(crate) fn answer(error: &Error) -> Answer {
    let status = match error.kind {
        Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
        Kind::Forbidden => StatusCode::FORBIDDEN,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut answer = plain(status, error.code, &error.public);
    match error.kind {
        Kind::Unauthenticated => {
            let value = if error.code == "NO_TOKEN" {
                "Bearer realm=\"keyward\""
            } else {
                "Bearer realm=\"keyward\", error=\"invalid_token\""
            };
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Kind::Forbidden => {
            let value = "Bearer realm=\"keyward\", error=\"insufficient_scope\"";
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Kind::TooMany { retry_after } => retry_later(&mut answer, retry_after),
        // A change whose outcome is unknown must not be repeated blindly: some published clients
        // repeat whatever says when to, and would rotate a key twice.
        Kind::Unavailable if error.code != UNCONFIRMED => {
            retry_later(&mut answer, RETRY_AFTER_SECONDS);
        }
        Kind::Unavailable | Kind::NotFound | Kind::Conflict | Kind::Invalid | Kind::Internal => {}
    }
    answer
}

fn retry_later(answer: &mut Answer, seconds: u32) {
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
}

/// An error answer. On a 404 `errors` is one object instead of a list, because the published
/// clients decode it so.
pub(crate) fn plain(status: StatusCode, code: &str, message: &str) -> Answer {
    let one = json!({ "code": code, "message": message });
    let errors = if status == StatusCode::NOT_FOUND { one } else { Value::Array(vec![one]) };
    json_answer(status, &json!({ "errors": errors }))
}

/// An error of the token endpoint, in the words of RFC 6749 §5.2.
pub(crate) fn oauth(status: StatusCode, error: &str, description: &str) -> Answer {
    let mut answer =
        json_answer(status, &json!({ "error": error, "error_description": description }));
    if status == StatusCode::UNAUTHORIZED {
        let value = HeaderValue::from_static("Basic realm=\"keyward\"");
        answer.headers_mut().insert(WWW_AUTHENTICATE, value);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        retry_later(&mut answer, RETRY_AFTER_SECONDS);
    }
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// No environment answers under this host name; while the store is still being loaded, none does.
pub(crate) fn nobody_there(directory: &Directory) -> Answer {
    if directory.is_empty() {
        return answer(&Error::unavailable("this server is still loading its keys; try again"));
    }
    let message = "no environment answers under this host name";
    plain(StatusCode::MISDIRECTED_REQUEST, "UNKNOWN_HOST", message)
}
