//! Cursors: where a list goes on. Opaque to callers, checked when they come back.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Result};

/// A cursor that goes on after the object `last`.
pub(crate) fn encode_token(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("1:{last}"))
}

/// The object that a cursor goes on after.
///
/// # Errors
/// `Invalid` for what [`encode_token`] did not make.
pub(crate) fn decode_token(token: &str) -> Result<String> {
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.strip_prefix("1:").map(str::to_owned))
        .ok_or_else(bad_token)
}

/// The cursor is none that was given out.
pub(crate) fn bad_token() -> Error {
    Error::invalid("BAD_CURSOR", "`next_token` is not one that was given out")
}
