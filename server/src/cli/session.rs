//! A command's access to the store: opened, checked, and left only when its changes are in force.
//!
//! The command line is a second process on the database. It makes changes through `ops`, like the
//! server, in the name of the account that runs it, and then waits like the server does: on
//! PostgreSQL for every node that verifies, on SQLite for the one server that holds the folder's
//! lock, or for that lock to fall free.

use std::io::ErrorKind;
use std::time::Duration;

use keyward_core::EnvId;
use keyward_core::protocol::{Commit, Standing, Waiter};

use super::out::Out;
use crate::clock::{Clock, Entropy};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::folder::Folder;
use crate::lease::{self, Others, Settle};
use crate::ops::{Actor, Context};
use crate::secrets::Keyring;
use crate::store::environments::Environment;
use crate::store::schema::{self, Found};
use crate::store::{
    Committed, Location, Stamp, Store, changes, environments, life, nodes, transfer,
};

/// How often the folder's lock is tried while a change waits for the server that held it.
const TRY_LOCK_EVERY: Duration = Duration::from_millis(50);

/// How long a command waits for servers without saying so.
const PATIENCE: Duration = Duration::from_secs(1);

/// An open store, the environment that the command is about, and who is asking.
pub(super) struct Session {
    pub(super) config: Config,
    pub(super) folder: Folder,
    pub(super) store: Store,
    pub(super) environment: Environment,
    pub(super) context: Context,
    pub(super) out: Out,
}

impl Session {
    /// Opens the store that `config` names, for the environment `slug`.
    ///
    /// # Errors
    /// `Invalid` when there is no store or it is from a newer version, `NotFound` for an
    /// environment that does not exist.
    pub(super) async fn open(config: &Config, slug: &str, out: &Out) -> Result<Self> {
        let (clock, entropy) = super::sources();
        let context = operator(&clock, &entropy);
        let store = open_store(config, clock, entropy).await?;
        let environment = environment(&store, slug).await?;
        let folder = Folder::existing(&config.folder);
        Ok(Self { config: config.clone(), folder, store, environment, context, out: *out })
    }

    /// The id of the environment that the command is about.
    pub(super) fn env(&self) -> EnvId {
        self.environment.env
    }

    /// The secrets file, checked to belong to this store.
    pub(super) async fn keyring(&self) -> Result<Keyring> {
        let keyring = Keyring::open(self.config.secrets_file.clone())?;
        keyring.check(&mut self.store.read().await?).await?;
        Ok(keyring)
    }

    /// Waits until a change that takes something away is in force, and returns what it returned.
    pub(super) async fn narrowed<T>(&self, done: Committed<T>) -> Result<T> {
        self.settle(done.stamp(), Settle::Narrowing).await?;
        Ok(done.value)
    }

    /// Waits a moment for a change that gives something, and returns what it returned.
    pub(super) async fn widened<T>(&self, done: Committed<T>) -> Result<T> {
        self.settle(done.stamp(), Settle::Widening).await?;
        Ok(done.value)
    }

    /// Passes on how a deletion went. One that finds nothing may repeat one that was cut off, so it
    /// waits like that one before it says that the thing is gone.
    pub(super) async fn deleted<T>(&self, result: Result<T>) -> Result<T> {
        if result.as_ref().is_err_and(|error| error.kind == Kind::NotFound) {
            let head = changes::head(&mut self.store.read().await?, -1).await?;
            let stamp = Stamp { seq: head.seq, incarnation: head.incarnation };
            self.settle(stamp, Settle::Narrowing).await?;
        }
        result
    }

    /// Waits until a change is in force, or a moment for one that only gives.
    pub(super) async fn settle(&self, stamp: Stamp, settle: Settle) -> Result<()> {
        wait_until_in_force(&self.store, &self.folder, stamp, settle).await
    }

    /// Ends the command's use of the store.
    pub(super) async fn close(&self) {
        self.store.close().await;
    }
}

/// Waits until a change is in force with every server on the store.
///
/// # Errors
/// `Unavailable` when that cannot be confirmed; the change stands all the same.
pub(super) async fn wait_until_in_force(
    store: &Store,
    folder: &Folder,
    stamp: Stamp,
    settle: Settle,
) -> Result<()> {
    let Stamp { seq, incarnation } = stamp;
    let waited = async {
        let at_us = store.clock.boot_us();
        // This process has no node that could remember a failover; what the store remembers is
        // asked for after the commit.
        let past = store.in_time(life::note(store, incarnation, 0)).await?;
        let quarantine_until_us = match past.quarantine_left_us {
            0 => i64::MIN,
            left_us => store.clock.boot_us().saturating_add(left_us),
        };
        let longest_us = past.longest_us;
        let standing = Standing { incarnation, quarantine_until_us, longest_us };
        let mut waiter = Waiter::begin(settle, Commit { seq, incarnation, at_us }, &standing);
        let others = Others::default();
        let wait =
            async |waiter| lease::wait(store, Some(&others), || None, incarnation, waiter).await;
        if !store.is_sqlite() {
            return wait(&mut waiter).await;
        }
        // Most of the time nobody is behind, and the lock, which a server could be about to take,
        // is left alone.
        let rows = nodes::all(&mut store.read().await?).await?.rows;
        if waiter.behind(None, &rows).next().is_none() {
            return Ok(());
        }
        tokio::select! {
            applied = wait(&mut waiter) => applied,
            freed = forget_dead_servers(store, folder) => freed,
        }
    };
    let mut waited = std::pin::pin!(waited);
    let waited = tokio::select! {
        waited = &mut waited => waited,
        () = tokio::time::sleep(PATIENCE) => {
            Out::new(false).note(
                "the change is stored; waiting for a server that has not followed it yet, at most \
                 for the length of its lease",
            );
            waited.await
        }
    };
    waited.map_err(|cause: Error| {
        let public = format!(
            "change {seq} is stored, but it could not be confirmed that every server follows it \
             already; they will within the length of their lease"
        );
        Error::unavailable(public).because(cause)
    })
}

/// Waits until no server holds the folder, and then removes the rows that dead ones left behind.
async fn forget_dead_servers(store: &Store, folder: &Folder) -> Result<()> {
    loop {
        if let Ok(lock) = folder.lock() {
            nodes::remove_all(&mut store.side().await?).await?;
            drop(lock);
            return Ok(());
        }
        tokio::time::sleep(TRY_LOCK_EVERY).await;
    }
}

/// Opens the store that `config` names and brings its schema up to this binary's.
pub(super) async fn open_store(config: &Config, clock: Clock, entropy: Entropy) -> Result<Store> {
    if let Location::File(path) = &config.location
        && let Err(cause) = path.metadata()
        && cause.kind() == ErrorKind::PermissionDenied
    {
        let folder = config.folder.display();
        let public = format!("the data folder {folder} cannot be entered by this account");
        return Err(Error::unavailable(public));
    }
    let store = Store::open(&config.location, false, clock, entropy).await?;
    let found = schema::found(&mut store.read().await?).await?;
    match found {
        Found::Nothing => return Err(no_store()),
        Found::Version(schema::VERSION) => {}
        Found::Version(_) => schema::bring_up(&store).await?,
    }
    transfer::refuse_if_moved(&mut store.read().await?).await?;
    Ok(store)
}

fn no_store() -> Error {
    let public = "this database holds no Keyward store yet; run `keyward init` or `keyward serve`";
    Error::invalid("NO_STORE", public)
}

/// The environment that the command line calls `slug`.
pub(super) async fn environment(store: &Store, slug: &str) -> Result<Environment> {
    let mut conn = store.read().await?;
    if let Some(found) = environments::by_slug(&mut conn, slug).await? {
        return Ok(found);
    }
    let all = environments::all_any_environment(&mut conn).await?;
    if all.is_empty() {
        return Err(no_store());
    }
    let slugs: Vec<&str> = all.iter().map(|one| one.slug.as_str()).collect();
    let mut error = Error::not_found("environment");
    error.public = format!("there is no environment `{slug}`; there is: {}", slugs.join(", "));
    Err(error)
}

/// Who runs this command: the account, in a request of its own.
pub(super) fn operator(clock: &Clock, entropy: &Entropy) -> Context {
    let id = entropy.id(clock.wall_us());
    Context {
        actor: Actor::Operator(account()),
        address: None,
        user_agent: Some(format!("keyward/{}", env!("CARGO_PKG_VERSION"))),
        request_id: schema::hex(&id),
        idempotency: None,
    }
}

/// The name of the account that runs this process. Taken from the operating system and not from
/// the environment, which anybody can set.
fn account() -> String {
    let uid = rustix::process::getuid().as_raw();
    let listed = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(&listed, uid).unwrap_or_else(|| format!("uid {uid}"))
}

/// The name of account `uid` in the format of passwd(5).
fn name_of(listed: &str, uid: u32) -> Option<String> {
    listed.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let is_it = fields.nth(1)?.parse::<u32>().is_ok_and(|listed| listed == uid);
        is_it.then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_named_as_the_operating_system_names_it() {
        let listed = "root:x:0:0::/root:/bin/sh\nbroken\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_of(listed, 1_000).as_deref(), Some("ann"));
        assert_eq!(name_of(listed, 7), None);
    }
}
