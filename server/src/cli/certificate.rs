//! When a certificate ends: the one thing of X.509 that nobody else here reads.
//!
//! `rustls` takes a server's own certificate without looking at its dates, and a parser of all of
//! X.509 would be a dependency for one field. DER (ITU-T X.690) is a tag, a length and the
//! contents; RFC 5280 §4.1 says in which order they come.

use crate::clock::parse_rfc3339;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version, which only certificates of the first version leave out.
const VERSION: u8 = 0xa0;

/// The instant until which the certificate `der` is good, µs since the epoch.
pub(super) fn not_after(der: &[u8]) -> Option<i64> {
    let mut certificate = contents(&mut &*der, SEQUENCE)?;
    let mut signed = contents(&mut certificate, SEQUENCE)?;
    if signed.first() == Some(&VERSION) {
        contents(&mut signed, VERSION)?;
    }
    contents(&mut signed, INTEGER)?;
    let [_algorithm, _issuer] =
        [contents(&mut signed, SEQUENCE)?, contents(&mut signed, SEQUENCE)?];
    let mut validity = contents(&mut signed, SEQUENCE)?;
    let (_not_before, not_after) = (element(&mut validity)?, element(&mut validity)?);
    instant(not_after)
}

/// The next element of `input`: its tag and its contents.
fn element<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&short, rest) = rest.split_first()?;
    let (length, rest) = if short < 0x80 {
        (usize::from(short), rest)
    } else {
        // The length of the length: four bytes hold that of any certificate.
        let (digits, rest) = rest.split_at_checked(usize::from(short & 0x7f))?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    let (contents, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some((tag, contents))
}

/// The contents of the next element of `input`, which must be of this kind.
fn contents<'a>(input: &mut &'a [u8], kind: u8) -> Option<&'a [u8]> {
    element(input).filter(|(tag, _)| *tag == kind).map(|(_, contents)| contents)
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`: RFC 5280 §4.1.2.5 allows no other form.
fn instant((tag, text): (u8, &[u8])) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let whole = match tag {
        // Years from 50 on are of the century before.
        UTC_TIME if text.get(..2)? >= "50" => format!("19{text}"),
        UTC_TIME => format!("20{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    if whole.len() != 14 || !whole.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| whole.get(from..to);
    parse_rfc3339(&format!(
        "{}-{}-{}T{}:{}:{}Z",
        part(0, 4)?,
        part(4, 6)?,
        part(6, 8)?,
        part(8, 10)?,
        part(10, 12)?,
        part(12, 14)?,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::clock::rfc3339;

    fn certificate(year: i32, month: u8, day: u8) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["keys.test".to_owned()]).expect("a name");
        params.not_before = date_time_ymd(1999, 1, 1);
        params.not_after = date_time_ymd(year, month, day);
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_forms_of_a_date() {
        for (year, month, day, end) in [
            (1999, 12, 31, "1999-12-31T00:00:00.000Z"),
            (2026, 11, 23, "2026-11-23T00:00:00.000Z"),
            (2049, 12, 31, "2049-12-31T00:00:00.000Z"),
            (2050, 1, 1, "2050-01-01T00:00:00.000Z"),
            (4096, 2, 29, "4096-02-29T00:00:00.000Z"),
        ] {
            assert_eq!(
                not_after(&certificate(year, month, day)).map(rfc3339).as_deref(),
                Some(end)
            );
        }
    }

    #[test]
    fn a_certificate_without_an_end_is_good_until_the_last_second() {
        // RFC 5280 §4.1.2.5: what has no well-defined end has this one.
        let end = instant((GENERALIZED_TIME, b"99991231235959Z"));
        assert_eq!(end.map(rfc3339).as_deref(), Some("9999-12-31T23:59:59.000Z"));
    }

    #[test]
    fn a_certificate_cut_off_anywhere_before_its_dates_has_no_end() {
        let whole = certificate(2026, 11, 23);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_end_or_none(bytes: Vec<u8>) {
            not_after(&bytes);
        }
    }
}
