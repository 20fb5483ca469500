//! Keys made elsewhere, many in one change.
//!
//! A change must not hold the store's lock for long, and an import can bring a million keys, so
//! what the keys of a change refer to is read once and their rows are written together.

use std::collections::HashMap;

use keyward_core::{Digest, EnvId, KeyId};
use serde_json::json;

use super::created_by;
use super::prepare::{Lookups, NewKey, prepare};
use crate::error::{Error, Result};
use crate::ops::{Action, Context};
use crate::store::keys::Minted;
use crate::store::{Committed, Fact, Outcome, Store, Touched, Tx, keys};

/// Most keys in one import: a change must not hold the store's lock for long.
pub const IMPORT_MAX: usize = 1_000;

/// A key made elsewhere, known by an unpeppered SHA-256 of its secret.
#[derive(Debug, Clone)]
pub struct ImportedKey {
    /// What the key shall be.
    pub new: NewKey,
    /// SHA-256 of the secret.
    pub digest: Digest,
}

/// Imports keys made elsewhere, all or none of them; at most [`IMPORT_MAX`].
///
/// # Errors
/// As [`super::issue()`]; `Conflict` when a hash is there already. The message says which key it
/// was.
pub async fn import(
    store: &Store,
    env: EnvId,
    context: &Context,
    imported: Vec<ImportedKey>,
) -> Result<Committed<Vec<KeyId>>> {
    let created_by = created_by(context);
    store
        .write(env, context, Action::KeysImported, move |tx| {
            Box::pin(async move {
                refuse_known(tx, env, &imported).await?;
                let mut fact = Fact { target_kind: "keys", ..Fact::default() };
                let mut lookups = Lookups::default();
                lookups.read_users(tx, env, imported.iter().map(|one| &one.new)).await?;
                let mut rows = Vec::with_capacity(imported.len());
                for (position, one) in imported.into_iter().enumerate() {
                    let created_by = created_by.clone();
                    let (mut key, _) =
                        prepare(tx, env, one.new, created_by, &mut fact, &mut lookups)
                            .await
                            .map_err(|error| at(position, error))?;
                    key.imported = true;
                    rows.push(Minted { key, digest: one.digest, pepper_id: keys::UNPEPPERED });
                }
                lookups.register_strangers(tx, env).await?;
                keys::insert(&mut tx.conn, &rows, tx.now).await?;
                let ids = rows.iter().map(|row| row.key.key).collect::<Vec<_>>();
                conclude(&mut fact, &rows);
                Ok(Outcome::Changed(ids, fact))
            })
        })
        .await
}

/// Refuses a hash that is there already, or twice in this import.
async fn refuse_known(tx: &mut Tx, env: EnvId, imported: &[ImportedKey]) -> Result<()> {
    let digests: Vec<Digest> = imported.iter().map(|one| one.digest).collect();
    let known = keys::digests_among(&mut tx.conn, env, &digests).await?;
    let mut seen = HashMap::with_capacity(digests.len());
    for (position, digest) in digests.into_iter().enumerate() {
        if known.contains(&digest) || seen.insert(digest, position).is_some() {
            let public = "a key with this hash exists already";
            return Err(at(position, Error::conflict("SECRET_TAKEN", public)));
        }
    }
    Ok(())
}

/// Says which key of the import an error is about.
fn at(position: usize, mut error: Error) -> Error {
    error.public = format!("keys[{position}]: {}", error.public);
    error
}

/// What the audit log keeps of an import: the keys' ids. Owners are named only for one key.
fn conclude(fact: &mut Fact, rows: &[Minted]) {
    let ids: Vec<String> = rows.iter().map(|row| row.key.key.to_string()).collect();
    fact.target_id = ids.first().cloned().unwrap_or_default();
    fact.after = Some(json!({ "key_ids": ids }));
    fact.touched.extend(rows.iter().map(|row| Touched::Key(row.key.key)));
    if rows.len() > 1 {
        (fact.user, fact.org) = (None, None);
    }
}
