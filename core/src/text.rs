//! A text that mostly lies in the entry it belongs to, since an allocation of its own costs a
//! cache miss to read and some 20 bytes to keep.

/// Enough for `kp_` and 32 hex digits (35), a UUID (36), `auth0|` and 24 (30), most addresses.
const INLINE_BYTES: usize = 38;

pub(crate) enum Text {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Boxed(Box<str>),
}

const _: () = assert!(size_of::<Text>() == 40, "tag and length fill the word up");

impl Text {
    pub(crate) fn new(text: &str) -> Self {
        let mut bytes = [0; INLINE_BYTES];
        match bytes.get_mut(..text.len()) {
            Some(start) => {
                start.copy_from_slice(text.as_bytes());
                Self::Inline { len: text.len() as u8, bytes }
            }
            None => Self::Boxed(text.into()),
        }
    }

    #[inline]
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Inline { len, bytes } => {
                let text = bytes.get(..usize::from(*len)).and_then(|b| str::from_utf8(b).ok());
                text.expect("the bytes came from a text of this length")
            }
            Self::Boxed(text) => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_any_length_reads_as_it_was_written() {
        for text in ["", "kp_1", &"x".repeat(38), &"x".repeat(39), &"é".repeat(19), &"é".repeat(20)]
        {
            assert_eq!(Text::new(text).as_str(), text);
        }
    }
}
