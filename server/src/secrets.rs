//! The secrets file: what turns the database's digests and sealed keys into something useful.
//!
//! Peppers (the HMAC keys of stored digests) and the sealing key (AES-256-GCM, for the signing
//! keys in the database) live in this file and nowhere else. The database stores each pepper's id
//! and a check value, so that a process with the wrong file is stopped at the door instead of
//! answering `API_KEY_INVALID` to every good key.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keyward_core::Pepper;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::clock::Entropy;
use crate::error::{Error, Result};
use crate::store::Conn;
use crate::store::sealed::{self, PepperCheck};

/// The name of the secrets file in the data folder.
pub const FILE_NAME: &str = "secrets.toml";

/// What the secrets file holds. Not printable.
pub struct Secrets {
    peppers: Vec<(u32, Zeroizing<Vec<u8>>)>,
    sealing: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} peppers)", self.peppers.len())
    }
}

/// The file's shape.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    /// AES-256 key in base64.
    sealing_key: String,
    /// Peppers, the one for new secrets first.
    pepper: Vec<RawPepper>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPepper {
    id: u32,
    key: String,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.sealing_key.zeroize();
        for pepper in &mut self.pepper {
            pepper.key.zeroize();
        }
    }
}

impl Secrets {
    /// Fresh secrets with one pepper.
    pub fn generate(entropy: &Entropy) -> Self {
        Self {
            peppers: vec![(1, Zeroizing::new(entropy.bytes::<32>().to_vec()))],
            sealing: Zeroizing::new(entropy.bytes::<32>().to_vec()),
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// `Invalid` that names the file when it is missing, readable by others, or not as it should
    /// be. The contents are never part of the message.
    pub fn read(path: &Path) -> Result<Self> {
        let bad = |why: String| Error::invalid("BAD_SECRETS_FILE", why);
        let shown = path.display();
        let metadata = fs::metadata(path).map_err(|cause| {
            bad(format!(
                "the secrets file {shown} cannot be read ({}); without it no key can be \
                 recognised: put the file back, or name it with --secrets-file",
                cause.kind()
            ))
        })?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(bad(format!(
                "the secrets file {shown} can be read by others; run `chmod 600` on it"
            )));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(|cause| {
            bad(format!("the secrets file {shown} cannot be read ({})", cause.kind()))
        })?);
        // OK to drop the parser's message: it would quote the line, which is a secret.
        let raw: Raw = toml::from_str(&text)
            .map_err(|_| bad(format!("the secrets file {shown} is not as Keyward wrote it")))?;
        let key = |text: &str| {
            STANDARD
                .decode(text)
                .ok()
                .filter(|key| key.len() == 32)
                .map(Zeroizing::new)
                .ok_or_else(|| bad(format!("the secrets file {shown} holds a damaged key")))
        };
        let peppers = raw
            .pepper
            .iter()
            .map(|pepper| Ok((pepper.id, key(&pepper.key)?)))
            .collect::<Result<Vec<_>>>()?;
        if peppers.is_empty() {
            return Err(bad(format!("the secrets file {shown} holds no pepper")));
        }
        Ok(Self { peppers, sealing: key(&raw.sealing_key)? })
    }

    /// Writes a new file at `path`, readable by its owner alone; never replaces one.
    ///
    /// # Errors
    /// `Conflict` when the file exists, `Unavailable` when it cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<()> {
        self.write(path, fs::OpenOptions::new().write(true).create_new(true))
    }

    /// Replaces the file at `path` in one step.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be written; the old file is then whole.
    pub fn replace(&self, path: &Path) -> Result<()> {
        let beside = path.with_extension("toml.new");
        self.write(&beside, fs::OpenOptions::new().write(true).create(true).truncate(true))?;
        fs::rename(&beside, path).map_err(|cause| unwritable(path, &cause))
    }

    fn write(&self, path: &Path, options: &mut fs::OpenOptions) -> Result<()> {
        let raw = Raw {
            sealing_key: STANDARD.encode(&*self.sealing),
            pepper: self
                .peppers
                .iter()
                .map(|(id, key)| RawPepper { id: *id, key: STANDARD.encode(&**key) })
                .collect(),
        };
        let mut text = Zeroizing::new(String::from(
            "# Keyward's secrets. Without this file no stored key can be recognised; with it and\n\
             # the database, signing keys can be read. Keep a copy apart from the backups.\n",
        ));
        text.push_str(&format!("sealing_key = \"{}\"\n", raw.sealing_key));
        for pepper in &raw.pepper {
            text.push_str(&format!("\n[[pepper]]\nid = {}\nkey = \"{}\"\n", pepper.id, pepper.key));
        }
        let mut file = options.mode(0o600).open(path).map_err(|cause| {
            if cause.kind() == std::io::ErrorKind::AlreadyExists {
                Error::conflict("SECRETS_EXIST", format!("{} exists already", path.display()))
            } else {
                unwritable(path, &cause)
            }
        })?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|cause| unwritable(path, &cause))
    }

    /// The peppers, the one for new secrets first.
    pub fn peppers(&self) -> Vec<Pepper> {
        self.peppers.iter().map(|(id, key)| Pepper::new(*id, key)).collect()
    }

    /// The pepper that new secrets are stored under.
    pub fn current_pepper(&self) -> Pepper {
        let (id, key) = self.peppers.first().expect("a secrets file holds at least one pepper");
        Pepper::new(*id, key)
    }

    /// Adds a fresh pepper for new secrets; the others go on recognising old ones.
    pub fn add_pepper(&mut self, entropy: &Entropy) -> u32 {
        let id = self.peppers.iter().map(|(id, _)| *id).max().unwrap_or(0) + 1;
        self.peppers.insert(0, (id, Zeroizing::new(entropy.bytes::<32>().to_vec())));
        id
    }

    /// Forgets a retired pepper; secrets stored under it are recognised no longer.
    pub fn remove_pepper(&mut self, id: u32) {
        self.peppers.retain(|(existing, _)| *existing != id);
    }

    /// What the database keeps to recognise pepper `id` by: a digest of fixed words.
    pub fn check_value(pepper: &Pepper) -> [u8; 32] {
        *pepper.digest(b"keyward pepper check").bytes()
    }

    /// Seals `plain` for the database (AES-256-GCM, random nonce in front). `purpose` must be
    /// given again to open it, so that one sealed thing cannot stand for another.
    pub fn seal(&self, purpose: &str, plain: &[u8]) -> Vec<u8> {
        let key = self.sealing_key();
        let mut sealed = plain.to_vec();
        let nonce = key
            .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut sealed)
            .expect("a few kilobytes can be sealed");
        let mut out = nonce.as_ref().to_vec();
        out.append(&mut sealed);
        out
    }

    /// Opens what [`Secrets::seal`] sealed for the same purpose; `None` if it was not.
    pub fn open(&self, purpose: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = Zeroizing::new(rest.to_vec());
        let aad = Aad::from(purpose.as_bytes());
        let length = self.sealing_key().open_in_place(nonce, aad, &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }

    fn sealing_key(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, &self.sealing)
            .expect("the sealing key is 32 bytes long")
    }
}

/// The secrets in use by a running process, read again when the store names a pepper they lack.
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    secrets: RwLock<Arc<Secrets>>,
}

impl Keyring {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// As [`Secrets::read`].
    pub fn open(path: PathBuf) -> Result<Self> {
        let secrets = RwLock::new(Arc::new(Secrets::read(&path)?));
        Ok(Self { path, secrets })
    }

    /// The secrets as they are now.
    pub fn secrets(&self) -> Arc<Secrets> {
        Arc::clone(&self.secrets.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The peppers, the one for new secrets first.
    pub fn peppers(&self) -> Vec<Pepper> {
        self.secrets().peppers()
    }

    /// Checks that every pepper of the store is here; reads the file again if one is not.
    ///
    /// # Errors
    /// `Invalid` that names the pepper which is missing or different.
    pub(crate) async fn check(&self, conn: &mut Conn) -> Result<()> {
        let stored = sealed::peppers_any_environment(conn).await?;
        if lacking(&self.secrets(), &stored).is_some() {
            let again = Arc::new(Secrets::read(&self.path)?);
            *self.secrets.write().unwrap_or_else(PoisonError::into_inner) = again;
        }
        match lacking(&self.secrets(), &stored) {
            None => Ok(()),
            Some(id) => Err(Error::invalid(
                "WRONG_SECRETS_FILE",
                format!(
                    "the secrets file {} does not belong to this store: its pepper {id} is \
                     missing or another; put the right file there, or name it with --secrets-file",
                    self.path.display()
                ),
            )),
        }
    }
}

/// The first pepper of the store that the file lacks or has otherwise.
fn lacking(secrets: &Secrets, stored: &[PepperCheck]) -> Option<i64> {
    let held = secrets.peppers();
    stored
        .iter()
        .find(|check| {
            !held.iter().any(|pepper| {
                i64::from(pepper.id()) == check.pepper_id
                    && Secrets::check_value(pepper).as_slice() == check.check_value
            })
        })
        .map(|check| check.pepper_id)
}

fn unwritable(path: &Path, cause: &std::io::Error) -> Error {
    Error::unavailable(format!("{} cannot be written ({})", path.display(), cause.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_for_its_own_purpose_only() {
        let secrets = Secrets::generate(&Entropy::seeded(1));
        let sealed = secrets.seal("a", b"plain");
        assert_eq!(secrets.open("a", &sealed).expect("opens").as_slice(), b"plain");
        assert!(secrets.open("b", &sealed).is_none());
        let other = Secrets::generate(&Entropy::seeded(2));
        assert!(other.open("a", &sealed).is_none());
    }

    #[test]
    fn a_secrets_file_is_read_back_and_never_replaced_by_accident() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE_NAME);
        let mut secrets = Secrets::generate(&Entropy::seeded(1));
        secrets.add_pepper(&Entropy::seeded(3));
        secrets.write_new(&path).expect("writes");
        assert!(secrets.write_new(&path).is_err());
        let back = Secrets::read(&path).expect("reads");
        let check = Secrets::check_value(&secrets.current_pepper());
        assert_eq!(Secrets::check_value(&back.current_pepper()), check);
        assert_eq!(back.peppers().len(), 2);
    }

    #[test]
    fn a_secrets_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(FILE_NAME);
        Secrets::generate(&Entropy::seeded(1)).write_new(&path).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        let error = Secrets::read(&path).expect_err("refused");
        assert!(error.public.contains("chmod 600"));
    }
}
