//! The secret itself: how one is minted, and what can be said about a text without looking it up.
//!
//! `<prefix>_<43 base62 digits of 256 random bits><6 base62 digits of a CRC-32>`, so that a typing
//! error or a secret scanner's guess is found out from the text alone. Where random bytes come
//! from, and which prefixes an environment has, is left to others.

use std::fmt;
use zeroize::Zeroizing;

/// The longest text that is looked at, in bytes; a longer one is invalid (`wire.md` §2).
pub const SECRET_BYTES_MAX: usize = 512;

/// 62^43 is a little more than 2^256, so 43 digits hold 256 bits.
const RANDOM_DIGITS: usize = 43;
/// 62^6 = 5.7 × 10^10 is more than 2^32, so 6 digits hold a CRC-32.
const CHECKSUM_DIGITS: usize = 6;
const PREFIX_BYTES_MAX: usize = 16;
/// The URI scheme of RFC 8959, colon included.
const SCHEME: &str = "secret-token:";

/// What an environment's secrets start with: `[a-z][a-z0-9_]{0,15}`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Prefix(Box<str>);

impl Prefix {
    /// Takes a prefix without the underscore that will follow it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_prefix(text).then(|| Self(text.into()))
    }

    /// The prefix, without the underscore that follows it in a secret.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

fn is_prefix(text: &str) -> bool {
    text.len() <= PREFIX_BYTES_MAX
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The plain text of a key, between minting and the one answer that shows it. It is wiped when
/// dropped and prints nothing.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Makes the secret of 32 random bytes. The caller wipes its own copy of the bytes.
    #[must_use]
    pub fn mint(prefix: &Prefix, random: &[u8; 32]) -> Secret {
        let bytes = prefix.as_str().len() + 1 + RANDOM_DIGITS + CHECKSUM_DIGITS;
        // The capacity is exact: a string that grows would leave an unwiped copy behind.
        let mut text = Zeroizing::new(String::with_capacity(bytes));
        text.push_str(prefix.as_str());
        text.push('_');
        text.extend(random_digits(random).iter().copied().map(char::from));
        let checksum = checksum_digits(text.as_bytes());
        text.extend(checksum.map(char::from));
        Secret(text)
    }

    /// The plain text. Whoever calls this answers for where it goes.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The first 6 characters, which may be shown and stored.
    #[must_use]
    pub fn first6(&self) -> &str {
        self.0.get(..6).expect("a secret is at least 51 ASCII characters long")
    }

    /// The last 4 characters, which may be shown and stored: a part of the checksum.
    #[must_use]
    pub fn last4(&self) -> &str {
        self.0.get(self.0.len() - 4..).expect("a secret is at least 51 ASCII characters long")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 256 bits, big-endian, as 43 base62 digits, most significant first.
fn random_digits(random: &[u8; 32]) -> Zeroizing<[u8; RANDOM_DIGITS]> {
    let mut digits = Zeroizing::new([b'0'; RANDOM_DIGITS]);
    let mut number = Zeroizing::new([0_u32; 8]);
    for (limb, bytes) in number.iter_mut().zip(random.as_chunks::<4>().0) {
        *limb = u32::from_be_bytes(*bytes);
    }
    for digit in digits.iter_mut().rev() {
        // Long division of the whole number by 62, from the most significant limb.
        let mut remainder = 0_u64;
        for limb in number.iter_mut() {
            let dividend = remainder << 32 | u64::from(*limb);
            *limb = (dividend / 62) as u32;
            remainder = dividend % 62;
        }
        *digit = base62(remainder as u8);
    }
    digits
}

/// The CRC-32 (IEEE) of a text, as 6 base62 digits, most significant first.
fn checksum_digits(signed: &[u8]) -> [u8; CHECKSUM_DIGITS] {
    let mut digits = [b'0'; CHECKSUM_DIGITS];
    let mut number = crc32fast::hash(signed);
    for digit in digits.iter_mut().rev() {
        *digit = base62((number % 62) as u8);
        number /= 62;
    }
    digits
}

const fn base62(value: u8) -> u8 {
    match value {
        0..=9 => b'0' + value,
        10..=35 => b'A' + (value - 10),
        _ => b'a' + (value - 36),
    }
}

/// What the text alone tells about a presented secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape<'a> {
    /// Our format with a good checksum, and its prefix. Whether an environment knows that prefix
    /// is another question.
    Ours(&'a str),
    /// Our format with a checksum that does not fit: mistyped or guessed.
    BadChecksum,
    /// Anything else.
    Foreign,
}

/// Judges the format of a presented text, which has no scheme in front any more.
#[must_use]
pub fn shape(text: &str) -> Shape<'_> {
    match Parts::of(text) {
        Some(Parts { prefix, intact: true }) => Shape::Ours(prefix),
        Some(Parts { intact: false, .. }) => Shape::BadChecksum,
        None => Shape::Foreign,
    }
}

/// Takes off the scheme of RFC 8959 (`secret-token:`), in either case, if it is there.
#[must_use]
pub fn strip_scheme(text: &str) -> &str {
    match text.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => rest,
        _ => text,
    }
}

fn are_digits(text: &str) -> bool {
    // OK not to stop at the first bad one: without that, the compiler takes 16 at a time.
    text.bytes().fold(true, |all, b| all & b.is_ascii_alphanumeric())
}

/// A text of our format, taken apart.
pub(crate) struct Parts<'a> {
    pub(crate) prefix: &'a str,
    /// Whether the checksum fits.
    pub(crate) intact: bool,
}

impl<'a> Parts<'a> {
    /// Digits have no underscore, so the last one ends the prefix, which may hold others.
    pub(crate) fn of(text: &'a str) -> Option<Parts<'a>> {
        let (signed, checksum) = text.split_at_checked(text.len().checked_sub(CHECKSUM_DIGITS)?)?;
        let (head, random) = signed.split_at_checked(signed.len().checked_sub(RANDOM_DIGITS)?)?;
        let prefix = head.strip_suffix('_')?;
        let is_ours = is_prefix(prefix) && are_digits(random) && are_digits(checksum);
        is_ours.then(|| Parts {
            prefix,
            intact: checksum_digits(signed.as_bytes()) == checksum.as_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn minted(prefix: &str, random: [u8; 32]) -> String {
        let prefix = Prefix::parse(prefix).expect("the test's prefix is one");
        Secret::mint(&prefix, &random).expose().to_owned()
    }

    fn counting(first: u8, step: u8) -> [u8; 32] {
        std::array::from_fn(|place| first.wrapping_add(step.wrapping_mul(place as u8)))
    }

    /// The expected texts were computed apart from this code, with Python's integers and
    /// `zlib.crc32`.
    #[test]
    fn a_secret_is_the_prefix_43_digits_and_the_checksum_of_both() {
        for (prefix, random, expected) in [
            ("k_live", [0; 32], "k_live_00000000000000000000000000000000000000000002WJ51Y"),
            ("k_live", [255; 32], "k_live_yhjskwdA6OZ1AL1YmHWZWm8LLG7HjnuCA2j5rOw8Xp10cllNs"),
            ("k_live", counting(0, 1), "k_live_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf30v15A"),
            ("a", counting(255, 255), "a_yhgIGB9quGfHP8Y83EcC2im5kZukTeYkpb69aekqK3M2U2fJs"),
            (
                "sixteen_chars_16",
                std::array::from_fn(|place| u8::from(place == 0)),
                "sixteen_chars_16_0EhWuMzfS7MPuxAu520Mu4XwCuyZfalRej3Z8gTlzA84E2uj9",
            ),
        ] {
            assert_eq!(minted(prefix, random), expected);
            assert_eq!(shape(expected), Shape::Ours(prefix));
        }
    }

    #[test]
    fn a_prefix_is_a_small_letter_and_at_most_15_more() {
        for good in ["k", "k_live", "k9", "k_", "k__2", "abcdefghijklmnop"] {
            assert_eq!(Prefix::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "_k", "9k", "K", "kL", "k-live", "k live", "ké", "abcdefghijklmnopq"] {
            assert_eq!(Prefix::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_text_of_another_form_is_foreign() {
        let ours = minted("k_live", counting(7, 3));
        for foreign in [
            "",
            "_",
            "k_live",
            "k_live_",
            &ours[..55],
            &ours[1..].replace('_', ""),
            &format!("{ours}0"),
            &format!(" {ours}"),
            &format!("{ours}\n"),
            &ours.replace("k_live", "K_live"),
            &ours.replace("k_live", "k_live_and_more_x"),
            &ours.replace("live_", "live-"),
            &format!("{}é", &ours[..54]),
            &format!("é{ours}"),
            &"é".repeat(28),
            &"🦀".repeat(14),
        ] {
            assert_eq!(shape(foreign), Shape::Foreign, "{foreign:?}");
        }
    }

    #[test]
    fn the_scheme_comes_off_once_in_either_case() {
        assert_eq!(strip_scheme("secret-token:k_live_1"), "k_live_1");
        assert_eq!(strip_scheme("Secret-Token:k_live_1"), "k_live_1");
        assert_eq!(strip_scheme("secret-token:secret-token:x"), "secret-token:x");
        for other in ["", "k_live_1", "secret-token", "secret-tokené:x", " secret-token:x"] {
            assert_eq!(strip_scheme(other), other);
        }
    }

    #[test]
    fn a_secret_prints_nothing_and_shows_six_and_four_characters() {
        let prefix = Prefix::parse("a").expect("one letter is a prefix");
        let secret = Secret::mint(&prefix, &counting(255, 255));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert_eq!((secret.first6(), secret.last4()), ("a_yhgI", "2fJs"));
    }

    proptest! {
        #[test]
        fn every_minted_secret_is_of_our_format(
            prefix in "[a-z][a-z0-9_]{0,15}",
            random: [u8; 32],
        ) {
            let text = minted(&prefix, random);
            prop_assert_eq!(text.len(), prefix.len() + 50);
            prop_assert_eq!(shape(&text), Shape::Ours(&prefix));
        }

        /// A CRC-32 finds every error of up to 32 bits in a row, so any one wrong character.
        #[test]
        fn one_wrong_character_is_always_found_out(
            random: [u8; 32],
            place in 7..56_usize,
            wrong in "[0-9A-Za-z]",
        ) {
            let right = minted("k_live", random);
            let mut text = right.clone();
            text.replace_range(place..=place, &wrong);
            prop_assume!(text != right);
            prop_assert_eq!(shape(&text), Shape::BadChecksum);
        }

        #[test]
        fn no_text_is_too_strange_to_judge(text in any::<String>(), cut in 0..80_usize) {
            let near = format!("k_live_{text}{}", minted("k_live", [9; 32]));
            for text in [text.as_str(), strip_scheme(&text), near.get(cut..).unwrap_or("")] {
                match shape(text) {
                    Shape::Ours(prefix) => prop_assert!(text.starts_with(prefix)),
                    Shape::BadChecksum => prop_assert!(text.len() >= 51),
                    Shape::Foreign => {}
                }
            }
        }
    }
}
