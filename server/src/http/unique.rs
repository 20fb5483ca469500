//! Reading JSON in which no name comes twice within one object.
//!
//! RFC 8259 §4 leaves it open what a repeated name means, and readers differ: the last one counts,
//! or the first. A proxy that checks one and a server that takes the other are how checks are gone
//! around, so that such a body is refused. `serde_json::Value` alone takes the last.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text is not read.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is not JSON.
    NotJson(serde_json::Error),
    /// This name comes twice in one object.
    Twice(String),
}

/// Reads one JSON value, and nothing after it.
pub(crate) fn read(text: &[u8]) -> Result<Value, Unread> {
    let twice = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = Reader(&twice).deserialize(&mut reader);
    read.and_then(|value| reader.end().map(|()| value)).map_err(|error| match twice.take() {
        Some(name) => Unread::Twice(name),
        None => Unread::NotJson(error),
    })
}

/// Reads one value; a name that comes twice is left in the cell.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            if values.contains_key(&name) {
                self.0.replace(Some(name));
                return Err(A::Error::custom("a name comes twice"));
            }
            values.insert(name, object.next_value_seed(self)?);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn twice(text: &str) -> Option<String> {
        match read(text.as_bytes()) {
            Err(Unread::Twice(name)) => Some(name),
            Ok(_) | Err(Unread::NotJson(_)) => None,
        }
    }

    #[test]
    fn a_name_that_comes_twice_is_told_at_any_depth_and_however_it_is_written() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"b":{"a":1,"c":[],"a":null}}"#,
            r#"[0,[{"a":[],"a":[]}]]"#,
            r#"{"a":1,"a""#,
        ] {
            assert_eq!(twice(text).as_deref(), Some("a"), "{text}");
        }
        for text in [r#"{"a":{"a":{"a":[{"a":1},{"a":1}]}}}"#, r#"{"a":1,"A":2}"#, "{"] {
            assert_eq!(twice(text), None, "{text}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e300..1e300).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..8)
                    .prop_map(|values| Value::Object(values.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_has_no_name_twice_is_read_as_serde_reads_it(value in any_json()) {
            let text = value.to_string();
            let expected: Value = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(read(text.as_bytes()).expect("unique"), expected);
        }

        #[test]
        fn what_serde_does_not_read_is_not_read(bytes: Vec<u8>) {
            let theirs = serde_json::from_slice::<Value>(&bytes);
            prop_assert!(theirs.is_ok() || read(&bytes).is_err());
        }
    }
}
