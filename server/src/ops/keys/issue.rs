//! Keys that are issued together.
//!
//! Issuing is what a busy store does most, and asked one at a time, the database spends its time on
//! answering small questions. So the writer gathers what waits (see `store::write`): what all the
//! keys refer to is read once, each is then checked and minted by itself, and their rows are
//! written together. Whom that succeeds for, and what is done when it does not, is the writer's
//! business.

use keyward_core::{Digest, EnvId, Pepper, Secret};

use super::prepare::{Lookups, NewKey, NewOwner, prepare};
use super::{Issued, created_by, snapshot};
use crate::error::Result;
use crate::ops::Context;
use crate::store::keys::Minted;
use crate::store::{Fact, Touched, Tx, keys};

/// A key to be issued.
pub(crate) struct Issue {
    pub(crate) env: EnvId,
    pub(crate) context: Context,
    pub(crate) pepper: Pepper,
    pub(crate) new: NewKey,
}

impl Issue {
    /// Whether it takes statements that no other key shares: to look for an earlier call under its
    /// idempotency key, or for its organization and membership.
    pub(crate) fn asks_alone(&self) -> bool {
        let is_plain = matches!(self.new.owner, NewOwner::User(_, None) | NewOwner::Environment);
        self.context.idempotency.is_some() || !is_plain
    }
}

/// Keys of one environment that are being issued in one transaction.
pub(crate) struct Issuing {
    lookups: Lookups,
    minted: Vec<Minted>,
}

impl Issuing {
    /// Reads what the keys refer to.
    pub(crate) async fn begin(tx: &mut Tx, env: EnvId, all: &[&Issue]) -> Result<Self> {
        let mut lookups = Lookups::default();
        lookups.read_users(tx, env, all.iter().map(|one| &one.new)).await?;
        Ok(Self { lookups, minted: Vec::with_capacity(all.len()) })
    }

    /// Checks and mints one key. Nothing of it is written yet, and nothing is if this fails.
    pub(crate) async fn mint(&mut self, tx: &mut Tx, one: &Issue) -> Result<(Issued, Fact)> {
        let mut fact = Fact { target_kind: "key", ..Fact::default() };
        let (new, created_by) = (one.new.clone(), created_by(&one.context));
        let (mut key, prefix) =
            prepare(tx, one.env, new, created_by, &mut fact, &mut self.lookups).await?;
        let secret = Secret::mint(&prefix, &tx.entropy.bytes());
        key.key_prefix = secret.first6().to_owned();
        key.key_suffix = secret.last4().to_owned();
        let digest: Digest = one.pepper.digest(secret.expose().as_bytes());
        fact.target_id = key.key.to_string();
        fact.touched.push(Touched::Key(key.key));
        fact.after = Some(snapshot(&key));
        let issued = Issued { key: key.key, secret };
        self.minted.push(Minted { key, digest, pepper_id: one.pepper.id() });
        Ok((issued, fact))
    }

    /// Writes the keys that were minted, their secrets' digests, and the users they are the first
    /// to name.
    pub(crate) async fn finish(mut self, tx: &mut Tx, env: EnvId) -> Result<()> {
        self.lookups.register_strangers(tx, env).await?;
        keys::insert(&mut tx.conn, &self.minted, tx.now).await
    }
}
