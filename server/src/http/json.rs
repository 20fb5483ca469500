//! Writing JSON straight into a buffer, for the one route where a tree would be too dear.

use serde_json::Value;

/// Gives an object one more field.
pub(crate) fn put(object: &mut Value, name: &str, value: Value) {
    if let Value::Object(fields) = object {
        fields.insert(name.to_owned(), value);
    }
}

/// Appends `text` as a JSON string.
pub(crate) fn push_str(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|b| b < 0x20 || b == b'"' || b == b'\\') {
        let (plain, special) = rest.split_at(at);
        out.extend_from_slice(plain.as_bytes());
        let mut characters = special.chars();
        match characters.next() {
            Some('"') => out.extend_from_slice(b"\\\""),
            Some('\\') => out.extend_from_slice(b"\\\\"),
            Some(control) => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let code = u32::from(control);
                let digit = |n: u32| HEX.get(n as usize & 0xf).copied().unwrap_or(b'0');
                out.extend_from_slice(b"\\u00");
                out.push(digit(code >> 4));
                out.push(digit(code));
            }
            None => {}
        }
        rest = characters.as_str();
    }
    out.extend_from_slice(rest.as_bytes());
    out.push(b'"');
}

/// Appends `text` as a JSON string, or `null`.
pub(crate) fn push_opt(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => push_str(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends a number.
pub(crate) fn push_u64(out: &mut Vec<u8>, number: u64) {
    // 20 digits hold every u64.
    let mut digits = [0u8; 20];
    let mut rest = number;
    let mut used = 0;
    for slot in digits.iter_mut().rev() {
        // OK to truncate: a remainder of ten is one digit.
        *slot = b'0' + (rest % 10) as u8;
        rest /= 10;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(20 - used..).unwrap_or(&[]));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_is_read_back_as_it_was(text in ".*") {
            let mut out = Vec::new();
            push_str(&mut out, &text);
            let back: String = serde_json::from_slice(&out).expect("JSON");
            prop_assert_eq!(back, text);
        }

        #[test]
        fn every_number_is_read_back_as_it_was(number: u64) {
            let mut out = Vec::new();
            push_u64(&mut out, number);
            prop_assert_eq!(String::from_utf8(out).expect("digits"), number.to_string());
        }
    }
}
