//! Reading what a caller sent, name by name, so that nothing is taken silently.
//!
//! A body or a query is a set of named values. A handler takes the names it knows and then calls
//! [`Fields::finish`]: a name that is left over is an error that says which. Messages name the
//! field and what it should be, and never repeat its value, which could be a secret put into the
//! wrong place.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::unique::{self, Unread};
use crate::clock::{LAST_US, parse_rfc3339};
use crate::error::{Error, Result};

/// Longest name of an unknown field that a message repeats if it looks like one, in characters.
const NAME_SHOWN_MAX: usize = 40;
/// Longest name that a message repeats whatever it looks like, in characters. Secrets made
/// elsewhere can be as short as the next.
const ANY_NAME_SHOWN_MAX: usize = 15;

/// Named values of a body or a query.
#[derive(Debug)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    nulls: Vec<String>,
    from_query: bool,
}

impl Fields {
    /// The fields of a JSON object; zero bytes are an empty object.
    pub(crate) fn of_body(body: &[u8]) -> Result<Self> {
        if body.is_empty() {
            return Ok(Self::of_object(Map::new()));
        }
        match unique::read(body) {
            Ok(Value::Object(values)) => Ok(Self::of_object(values)),
            Ok(_) => Err(Error::invalid("BAD_BODY", "the body must be a JSON object")),
            Err(Unread::Twice(name)) => {
                Err(Error::invalid("BAD_BODY", format!("{} is given twice", shown("field", &name))))
            }
            Err(Unread::NotJson(error)) => Err(not_json(&error)),
        }
    }

    /// The fields of a nested object.
    pub(crate) fn of_object(values: Map<String, Value>) -> Self {
        let is_null = |(name, value): (&String, &Value)| value.is_null().then(|| name.clone());
        let nulls = values.iter().filter_map(is_null).collect();
        Self { values, nulls, from_query: false }
    }

    /// The parameters of a query. Published clients send the word `null` for what is absent.
    pub(crate) fn of_query(query: &str) -> Result<Self> {
        let mut values = Map::new();
        // What separates parameters is ASCII, so the whole is UTF-8 if every part is.
        if percent_encoding::percent_decode_str(query).decode_utf8().is_err() {
            return Err(Error::invalid("BAD_QUERY", "the query is not UTF-8"));
        }
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = if value.is_empty() || value == "null" {
                Value::Null
            } else {
                Value::String(value.into_owned())
            };
            let name = name.into_owned();
            if values.contains_key(&name) {
                let public = format!("{} is given twice", shown("query parameter", &name));
                return Err(Error::invalid("BAD_QUERY", public));
            }
            values.insert(name, value);
        }
        Ok(Self { values, nulls: Vec::new(), from_query: true })
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.values.remove(name).filter(|value| !value.is_null())
    }

    /// Whether `name` was given as `null`, which in a change means "clear it".
    pub(crate) fn was_null(&self, name: &str) -> bool {
        self.nulls.iter().any(|null| null == name)
    }

    /// Refuses `null` for `names`: in a change it would mean "clear it", and they cannot be empty.
    pub(crate) fn refuse_null(&self, names: &[&str]) -> Result<()> {
        match names.iter().find(|name| self.was_null(name)) {
            None => Ok(()),
            Some(name) => Err(wrong(name, "must not be null")),
        }
    }

    /// A text of 1 to `max` characters on one line.
    pub(crate) fn take_str(&mut self, name: &str, max: usize) -> Result<Option<String>> {
        self.take(name).map(|value| line(name, value, max)).transpose()
    }

    /// Like [`Fields::take_str`], and it must be there.
    pub(crate) fn need_str(&mut self, name: &str, max: usize) -> Result<String> {
        self.take_str(name, max)?.ok_or_else(|| missing(name))
    }

    /// A name for people: like [`Fields::take_str`] without spaces around it.
    pub(crate) fn take_name(&mut self, name: &str, max: usize) -> Result<Option<String>> {
        let Some(text) = self.take_str(name, max)? else { return Ok(None) };
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Err(wrong(name, &format!("must be 1 to {max} characters, not only spaces")));
        }
        Ok(Some(trimmed.to_owned()))
    }

    /// Like [`Fields::take_name`], and it must be there.
    pub(crate) fn need_name(&mut self, name: &str, max: usize) -> Result<String> {
        self.take_name(name, max)?.ok_or_else(|| missing(name))
    }

    /// A text of up to `max` characters that may have several lines.
    pub(crate) fn take_text(&mut self, name: &str, max: usize) -> Result<Option<String>> {
        self.take(name).map(|value| text(name, value, max)).transpose()
    }

    /// A flag.
    pub(crate) fn take_bool(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(Value::String(word)) if self.from_query && word == "true" => Ok(Some(true)),
            Some(Value::String(word)) if self.from_query && word == "false" => Ok(Some(false)),
            Some(_) => Err(wrong(name, "must be true or false")),
        }
    }

    /// A whole number in `range`.
    pub(crate) fn take_int(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = match &value {
            Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
            Value::String(digits) if self.from_query => digits.parse().ok(),
            Value::Null
            | Value::Bool(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => None,
        };
        number.filter(|number| range.contains(number)).map(Some).ok_or_else(|| {
            let (from, to) = (range.start(), range.end());
            wrong(name, &format!("must be a whole number from {from} to {to}"))
        })
    }

    /// An instant in RFC 3339, in µs since the epoch; from 1970 to the end of the year 9999.
    pub(crate) fn take_time(&mut self, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let at = value.as_str().and_then(parse_rfc3339).filter(|at| (0..=LAST_US).contains(at));
        at.map(Some).ok_or_else(|| wrong(name, "must be a time such as 2026-11-22T21:24:03Z"))
    }

    /// An object within.
    pub(crate) fn take_object(&mut self, name: &str) -> Result<Option<Fields>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Self::of_object(values))),
            Some(_) => Err(wrong(name, "must be an object")),
        }
    }

    /// A list of at most `max` values.
    pub(crate) fn take_array(&mut self, name: &str, max: usize) -> Result<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) if values.len() <= max => Ok(Some(values)),
            Some(_) => Err(wrong(name, &format!("must be a list of at most {max}"))),
        }
    }

    /// A list of at most `max` texts of at most `chars` characters.
    pub(crate) fn take_strings(
        &mut self,
        name: &str,
        max: usize,
        chars: usize,
    ) -> Result<Option<Vec<String>>> {
        let Some(values) = self.take_array(name, max)? else { return Ok(None) };
        values.into_iter().map(|value| line(name, value, chars)).collect::<Result<_>>().map(Some)
    }

    /// `page_size`: 1 to 500, or `default`.
    pub(crate) fn page_size(&mut self, default: i64) -> Result<i64> {
        Ok(self.take_int("page_size", 1..=500)?.unwrap_or(default))
    }

    /// Accepts names that Kinde's published API defines and Keyward does not use.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.values.remove(*name);
        }
    }

    /// Everything that nobody took, for a field whose names are the caller's own.
    pub(crate) fn into_map(self) -> Map<String, Value> {
        self.values
    }

    /// Refuses names that nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        let Some(name) = self.values.keys().next() else { return Ok(()) };
        let what = if self.from_query { "query parameter" } else { "field" };
        Err(Error::invalid("UNKNOWN_FIELD", format!("unknown {}", shown(what, name))))
    }
}

/// A name that the caller chose, as a message may show it.
fn shown(what: &str, name: &str) -> String {
    let length = name.chars().count();
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if length <= ANY_NAME_SHOWN_MAX || (length <= NAME_SHOWN_MAX && plain) {
        format!("{what} `{}`", name.escape_debug())
    } else {
        format!("{what}, whose name is not repeated because it could be a secret")
    }
}

/// Why a text is not JSON that is read here. OK to drop serde's message: it can quote the value,
/// and the place says enough.
pub(crate) fn not_json(error: &serde_json::Error) -> Error {
    let (line, column) = (error.line(), error.column());
    // serde_json stops at 128 levels and says so in its text alone.
    let public = if error.to_string().starts_with("recursion limit") {
        format!("the body is nested too deeply (line {line}, column {column})")
    } else {
        format!("the body is not JSON (line {line}, column {column})")
    };
    Error::invalid("BAD_BODY", public)
}

/// A number such as `7.0`, which JSON Schema takes for a whole one.
fn whole(number: f64) -> Option<i64> {
    // OK to convert: whole numbers below 2⁵³ are exact in both forms.
    let fits = number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0;
    fits.then_some(number as i64)
}

fn line(name: &str, value: Value, max: usize) -> Result<String> {
    let Value::String(text) = value else {
        return Err(wrong(name, "must be a text"));
    };
    let fits = (1..=max).contains(&text.chars().count());
    if fits && !text.chars().any(char::is_control) {
        return Ok(text);
    }
    Err(wrong(name, &format!("must be 1 to {max} characters without control characters")))
}

fn text(name: &str, value: Value, max: usize) -> Result<String> {
    let Value::String(text) = value else {
        return Err(wrong(name, "must be a text"));
    };
    let allowed = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
    if text.chars().count() <= max && text.chars().all(allowed) {
        return Ok(text);
    }
    Err(wrong(name, &format!("must be at most {max} characters without control characters")))
}

/// The field is there and wrong.
pub(crate) fn wrong(name: &str, what: &str) -> Error {
    Error::invalid("BAD_FIELD", format!("`{name}` {what}"))
}

/// The field must be there.
pub(crate) fn missing(name: &str) -> Error {
    Error::invalid("MISSING_FIELD", format!("`{name}` is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(text: &str) -> Fields {
        Fields::of_body(text.as_bytes()).expect("an object")
    }

    #[test]
    fn a_name_that_nobody_took_is_refused_by_name() {
        let error = body(r#"{"nmae":1}"#).finish().expect_err("refused");
        assert_eq!(error.public, "unknown field `nmae`");
    }

    #[test]
    fn a_secret_used_as_a_name_is_not_repeated() {
        for secret in
            ["k_live_0123456789012345678901234567890123456789012345678", "legacy-QmFzZTY0"]
        {
            let secret = format!("{secret}=");
            let error = body(&format!("{{\"{secret}\":1}}")).finish().expect_err("refused");
            assert!(!error.public.contains(&secret), "{}", error.public);
        }
        let error = body(r#"{"is_password_reset_requestde":1}"#).finish().expect_err("refused");
        assert_eq!(error.public, "unknown field `is_password_reset_requestde`");
    }

    #[test]
    fn a_value_is_never_repeated() {
        let mut fields = body(r#"{"name":["canary"],"n":"canary","t":"canary"}"#);
        for error in [
            fields.take_str("name", 5).expect_err("no text"),
            fields.take_int("n", 0..=5).expect_err("no number"),
            fields.take_time("t").expect_err("no time"),
            Fields::of_body(b"{\"canary\": canary}").expect_err("no JSON"),
        ] {
            assert!(!error.public.contains("canary"), "{}", error.public);
        }
    }

    #[test]
    fn names_lose_the_spaces_around_them_and_refuse_control_characters() {
        let mut fields = body("{\"a\":\" x y \",\"b\":\"x\\u0000\",\"c\":\"  \",\"d\":\"😀\"}");
        assert_eq!(fields.take_name("a", 9).expect("good").as_deref(), Some("x y"));
        assert!(fields.take_name("b", 9).is_err());
        assert!(fields.take_name("c", 9).is_err());
        assert_eq!(fields.take_name("d", 1).expect("good").as_deref(), Some("😀"));
    }

    #[test]
    fn a_query_parameter_that_comes_twice_is_refused() {
        let error = Fields::of_query("a=1&b=2&a=1").expect_err("refused");
        assert_eq!(error.public, "query parameter `a` is given twice");
    }

    #[test]
    fn a_number_is_whole_whatever_its_form() {
        let mut fields = body(r#"{"a":7,"b":7.0,"c":7.5,"d":1e300,"e":"7"}"#);
        for name in ["a", "b"] {
            assert_eq!(fields.take_int(name, 0..=9).expect("whole"), Some(7), "{name}");
        }
        for name in ["c", "d", "e"] {
            assert!(fields.take_int(name, 0..=i64::MAX).is_err(), "{name}");
        }
    }

    #[test]
    fn null_is_refused_where_nothing_can_be_cleared() {
        let fields = body(r#"{"name":null}"#);
        fields.refuse_null(&["status"]).expect("another field");
        let error = fields.refuse_null(&["status", "name"]).expect_err("refused");
        assert_eq!(error.public, "`name` must not be null");
    }

    #[test]
    fn a_query_takes_null_and_nothing_for_absent() {
        let mut fields = Fields::of_query("a=null&b=&page_size=7&c=%C3%BC").expect("good");
        assert_eq!(fields.take_str("a", 9).expect("absent"), None);
        assert_eq!(fields.take_str("b", 9).expect("absent"), None);
        assert_eq!(fields.page_size(10).expect("good"), 7);
        assert_eq!(fields.take_str("c", 9).expect("good").as_deref(), Some("ü"));
        fields.finish().expect("nothing is left");
        for bad in ["page_size=0", "page_size=1000000000", "page_size=x"] {
            assert!(Fields::of_query(bad).expect("good").page_size(10).is_err(), "{bad}");
        }
    }
}
