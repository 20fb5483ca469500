//! The stored form of a secret: HMAC-SHA-256 under a pepper, or plain SHA-256 for imported keys.
//!
//! A secret of ours has 256 random bits, so a slow password hash would add cost and no safety; the
//! pepper makes a stolen database useless for finding even weak imported secrets. Where peppers
//! are kept is left to the server (`design.md` §6).

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// 32 bytes from which no secret can be found. It prints nothing all the same: a digest in a log
/// would let its reader recognise a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes, as stored.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes, for the store only.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

/// A secret of the operator that goes into every digest, with the id that stored digests name.
///
/// It holds the HMAC state after the key block, so a digest costs 3 SHA-256 blocks instead of 5
/// and allocates nothing.
#[derive(Clone)]
pub struct Pepper {
    id: u32,
    keyed: Hmac<Sha256>,
}

impl Pepper {
    /// A pepper of any length; 32 random bytes are right.
    #[must_use]
    pub fn new(id: u32, key: &[u8]) -> Self {
        let keyed = Hmac::new_from_slice(key).expect("HMAC takes a key of any length");
        Self { id, keyed }
    }

    /// The id that stored digests name.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// HMAC-SHA-256 (RFC 2104) of the whole text of a secret, its prefix and checksum included.
    #[must_use]
    pub fn digest(&self, secret: &[u8]) -> Digest {
        let mut mac = self.keyed.clone();
        mac.update(secret);
        Digest(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pepper").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The unpeppered digest under which keys of another system are imported.
#[must_use]
pub fn sha256(secret: &[u8]) -> Digest {
    Digest(Sha256::digest(secret).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digest: Digest) -> String {
        digest.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// RFC 4231, test cases 1, 2 and 6 (short key, text key, key longer than a block).
    #[test]
    fn a_digest_is_hmac_sha_256() {
        for (key, text, expected) in [
            (
                [0x0b; 20].as_slice(),
                "Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                "what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 131],
                "Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
        ] {
            let pepper = Pepper::new(1, key);
            assert_eq!(hex(pepper.digest(text.as_bytes())), expected);
            // The keyed state is not used up.
            assert_eq!(hex(pepper.digest(text.as_bytes())), expected);
        }
    }

    /// The digests were computed apart from this code, with Python's `hmac` and `hashlib`.
    #[test]
    fn the_whole_text_of_a_secret_is_digested() {
        let secret = b"k_live_003aUlTJC7tjlCTQj2uNU3MFagCXG9LRKRcwGkBIDlf30v15A";
        let pepper = Pepper::new(1, b"pepper of the test, 32 bytes long");
        let peppered = "a62166194421a7a90762104c1e9f2cdb02ce0e832e364abda273f13dc1ae1e24";
        assert_eq!(hex(pepper.digest(secret)), peppered);
        let plain = "2d037cf2aea2ef9e69ff258d81c2818056cf8bac1d5c51e259d92e3ec41443a7";
        assert_eq!(hex(sha256(secret)), plain);
    }

    #[test]
    fn neither_a_digest_nor_a_pepper_prints_its_bytes() {
        assert_eq!(format!("{:?}", sha256(b"x")), "Digest(..)");
        assert_eq!(format!("{:?}", Pepper::new(7, b"x")), "Pepper { id: 7, .. }");
    }
}
