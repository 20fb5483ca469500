//! Identifiers: the 16-byte ids that Keyward makes, and the owners' ids that come from outside.
//!
//! Two kinds of id cannot be swapped, and each is read and printed in one form only. Making ids
//! (UUIDv7, which needs a clock and randomness) is left to the server.

use std::fmt;

/// The longest owner id, in characters (`design.md` §3). In UTF-8 that is at most 1,020 bytes.
const OWNER_ID_CHARS_MAX: usize = 255;

macro_rules! sixteen_byte_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            const PREFIX: &'static str = $prefix;
            const TEXT_BYTES: usize = Self::PREFIX.len() + 32;

            /// The id of these 16 bytes, whatever UUID version they are, if any.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes, as stored.
            #[must_use]
            pub const fn bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Reads the printed form; the 32 hex digits may be in either case, the prefix not.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                parse_hex(text.strip_prefix(Self::PREFIX)?).map(Self)
            }

            /// Appends the printed form: ASCII, of one length for all ids of this kind.
            pub fn write_to(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.text());
            }

            fn text(&self) -> [u8; Self::TEXT_BYTES] {
                let mut text = [0; Self::TEXT_BYTES];
                let digits = self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(hex_digit);
                for (place, byte) in text.iter_mut().zip(Self::PREFIX.bytes().chain(digits)) {
                    *place = byte;
                }
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(std::str::from_utf8(&self.text()).expect("prefix and hex digits are ASCII"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

sixteen_byte_id!(
    /// An environment: `env_` and 32 hex digits.
    EnvId,
    "env_"
);
sixteen_byte_id!(
    /// A key: `api_key_` and 32 hex digits. It stays when the secret is rotated.
    KeyId,
    "api_key_"
);
sixteen_byte_id!(
    /// An API: 32 hex digits.
    ApiId,
    ""
);
sixteen_byte_id!(
    /// A scope of an API: `api_scope_` and 32 hex digits.
    ScopeId,
    "api_scope_"
);
sixteen_byte_id!(
    /// An application: 32 hex digits.
    AppId,
    ""
);

const fn hex_digit(nibble: u8) -> u8 {
    match nibble {
        0..=9 => b'0' + nibble,
        _ => b'a' + nibble - 10,
    }
}

fn parse_hex(text: &str) -> Option<[u8; 16]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != 16 || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = parse_hex_digit(*high)? << 4 | parse_hex_digit(*low)?;
    }
    Some(bytes)
}

const fn parse_hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

macro_rules! owner_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes 1–255 visible characters as they are: no case folding, no normalization.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                is_owner_id(text).then(|| Self(text.into()))
            }

            /// The id as the identity provider writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

owner_id!(
    /// A user, by the id that the operator's identity provider gave (`kp_…`, `auth0|…`, an e-mail
    /// address).
    UserId
);
owner_id!(
    /// An organization, by its code.
    OrgCode
);

fn is_owner_id(text: &str) -> bool {
    // A character has at most 4 bytes; the byte test spares counting a megabyte of text.
    let fits = text.len() <= OWNER_ID_CHARS_MAX * 4 && text.chars().count() <= OWNER_ID_CHARS_MAX;
    !text.is_empty() && fits && text.chars().all(is_visible)
}

/// Whether a character can be seen. Two ids that differ only in what nobody can see would let one
/// person pass for another in a list.
fn is_visible(c: char) -> bool {
    !c.is_control() && !c.is_whitespace() && !is_ignorable(c)
}

/// Unicode's `Default_Ignorable_Code_Point` (DerivedCoreProperties.txt, Unicode 16), plus the
/// interlinear annotation marks U+FFF9–U+FFFB.
const fn is_ignorable(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: [u8; 16] = [
        0x01, 0x95, 0xc0, 0xff, 0xee, 0x00, 0x70, 0x01, 0x80, 0x02, 0xab, 0xcd, 0xef, 0x01, 0x23,
        0x45,
    ];

    #[test]
    fn an_id_prints_as_its_prefix_and_32_lower_case_digits() {
        let digits = "0195c0ffee0070018002abcdef012345";
        assert_eq!(KeyId::from_bytes(BYTES).to_string(), format!("api_key_{digits}"));
        assert_eq!(EnvId::from_bytes(BYTES).to_string(), format!("env_{digits}"));
        assert_eq!(ScopeId::from_bytes(BYTES).to_string(), format!("api_scope_{digits}"));
        assert_eq!(ApiId::from_bytes(BYTES).to_string(), digits);
        assert_eq!(AppId::from_bytes(BYTES).to_string(), digits);
        assert_eq!(format!("{:?}", ApiId::from_bytes(BYTES)), digits);
        let mut out = b"id=".to_vec();
        KeyId::from_bytes(BYTES).write_to(&mut out);
        assert_eq!(out, format!("id=api_key_{digits}").into_bytes());
    }

    #[test]
    fn an_id_is_read_in_either_case_and_nothing_else_is() {
        let key = Some(KeyId::from_bytes(BYTES));
        assert_eq!(KeyId::parse("api_key_0195c0ffee0070018002abcdef012345"), key);
        assert_eq!(KeyId::parse("api_key_0195C0FFEE0070018002ABCdef012345"), key);
        for bad in [
            "",
            "api_key_",
            "0195c0ffee0070018002abcdef012345",
            "API_KEY_0195c0ffee0070018002abcdef012345",
            "api_key_0195c0ffee0070018002abcdef01234",
            "api_key_0195c0ffee0070018002abcdef0123456",
            "api_key_0195c0ffee0070018002abcdef01234g",
            "api_key_+195c0ffee0070018002abcdef012345",
            "api_key_0195c0ff-ee00-7001-8002-abcdef012345",
            " api_key_0195c0ffee0070018002abcdef012345",
            "api_key_0195c0ffee0070018002abcdef0123é",
            "api_scope_0195c0ffee0070018002abcdef012345",
        ] {
            assert_eq!(KeyId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_owner_id_is_1_to_255_visible_characters() {
        let longest = "🦀".repeat(255);
        for good in ["k", "kp_1234567890", "auth0|5f7c", "ada@example.com", "李雷", &longest] {
            assert_eq!(UserId::parse(good).expect(good).as_str(), good);
            assert_eq!(OrgCode::parse(good).expect(good).to_string(), good);
        }
        for bad in [
            "",
            " ",
            " a",
            "a ",
            "a b",
            "a\tb",
            "a\nb",
            "a\0",
            "a\u{7f}",
            "a\u{85}b",
            "a\u{a0}b",
            "a\u{2028}b",
            "a\u{3000}b",
            "a\u{200b}b",
            "a\u{202e}b",
            "\u{feff}a",
            &"a".repeat(256),
            &"🦀".repeat(256),
        ] {
            assert_eq!(UserId::parse(bad), None, "{bad:?}");
            assert_eq!(OrgCode::parse(bad), None, "{bad:?}");
        }
    }
}
