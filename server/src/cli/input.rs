//! Values on the command line, held to the same rules as the bodies of requests.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::http::fields::Fields;
use crate::http::keys::{DESCRIPTION_MAX, NAME_MAX};

/// How many rows a list can be asked to show.
pub(super) const LIMIT: RangeInclusive<i64> = 1..=10_000;

/// Cuts a list that was asked for with one row too many to `limit`; whether there are more.
pub(super) fn cut<T>(found: &mut Vec<T>, limit: i64) -> bool {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = found.len() > limit;
    found.truncate(limit);
    has_more
}

/// A name: one line without spaces around it.
pub(super) fn name(flag: &str, text: String) -> Result<String> {
    one(flag, text).need_name(flag, NAME_MAX)
}

/// A name, if one was given.
pub(super) fn name_if(flag: &str, text: Option<String>) -> Result<Option<String>> {
    text.map(|text| name(flag, text)).transpose()
}

/// A description; an empty one clears it.
pub(super) fn description(text: Option<String>) -> Result<Option<Option<String>>> {
    let Some(text) = text else { return Ok(None) };
    let text = one("description", text).take_text("description", DESCRIPTION_MAX)?;
    Ok(Some(text.filter(|text| !text.is_empty())))
}

/// A name that an empty text clears.
pub(super) fn clearable(flag: &str, text: Option<String>) -> Result<Option<Option<String>>> {
    match text {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(Some(None)),
        Some(text) => name(flag, text).map(Some).map(Some),
    }
}

fn one(flag: &str, text: String) -> Fields {
    Fields::of_object(Map::from_iter([(flag.to_owned(), Value::String(text))]))
}

/// An id in its printed form. The text is not repeated: it could be a secret in the wrong place.
pub(super) fn id<T>(what: &str, text: &str, parse: fn(&str) -> Option<T>) -> Result<T> {
    parse(text).ok_or_else(|| Error::invalid("BAD_ID", format!("that is not the id of {what}")))
}

/// `name=value` pairs as an object of texts.
pub(super) fn pairs(flag: &str, pairs: &[String]) -> Result<Map<String, Value>> {
    let pair = |pair: &String| match pair.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), Value::String(value.to_owned()))),
        None => Err(Error::invalid("BAD_FIELD", format!("--{flag} must be name=value"))),
    };
    pairs.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_of_the_api() {
        assert_eq!(name("name", " a b ".into()).expect("good"), "a b");
        for bad in ["", "  ", "a\nb", "a\u{7f}", &"x".repeat(256)] {
            assert!(name("name", bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pairs_are_split_at_the_first_equals_sign() {
        let good = ["a=b=c".to_owned(), "d=".to_owned()];
        let object = Value::Object(pairs("metadata", &good).expect("good"));
        assert_eq!(object.to_string(), r#"{"a":"b=c","d":""}"#);
        assert!(pairs("metadata", &["a".to_owned()]).is_err());
    }

    #[test]
    fn an_empty_text_clears() {
        assert_eq!(clearable("handle", None).expect("good"), None);
        assert_eq!(clearable("handle", Some(String::new())).expect("good"), Some(None));
        let given = clearable("handle", Some("a".into())).expect("good");
        assert_eq!(given, Some(Some("a".to_owned())));
    }
}
