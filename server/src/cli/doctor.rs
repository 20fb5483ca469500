//! `keyward doctor`: looks for what is wrong, and says what to do about it.
//!
//! It changes nothing. A check that cannot be made because an earlier one failed is left out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{Access, access, statvfs};
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate;
use super::out::Out;
use super::socket::{self, Request};
use crate::clock::rfc3339;
use crate::config::{Config, Tls};
use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::ops::environments::{FIRST_ENVIRONMENT, RESTORE_PENDING};
use crate::secrets::{Keyring, Secrets};
use crate::serve::{descriptors_max, has_descriptors_for};
use crate::store::engine::{self, Engine};
use crate::store::environments::Environment;
use crate::store::schema::{self, Found};
use crate::store::{Location, Store, environments, transfer};

/// Free bytes below which a full disk is near: 1 GiB, about 1 M keys.
const FREE_BYTES_LOW: u64 = 1 << 30;
/// Free bytes below which writes are about to fail: 64 MiB.
const FREE_BYTES_FAIL: u64 = 64 << 20;
/// How far the machine's clock may be from the database's, in µs.
const CLOCK_APART_US: u64 = 2_000_000;

/// How long before a certificate's end it should be renewed: 14 days in µs.
const CERTIFICATE_ENDS_SOON_US: i64 = 14 * 24 * 3_600 * 1_000_000;

/// What a check came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    Warn,
    Fail,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        }
    }
}

/// What was found so far.
struct Findings(Vec<(&'static str, State, String)>);

impl Findings {
    fn ok(&mut self, check: &'static str, message: impl Into<String>) {
        self.0.push((check, State::Ok, message.into()));
    }

    fn warn(&mut self, check: &'static str, message: impl Into<String>) {
        self.0.push((check, State::Warn, message.into()));
    }

    fn fail(&mut self, check: &'static str, message: impl Into<String>) {
        self.0.push((check, State::Fail, message.into()));
    }

    /// Keeps a result's value, or its failure as a finding.
    fn keep<T>(&mut self, check: &'static str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let cause = error.chain();
                let cause = if cause.is_empty() { cause } else { format!(" ({cause})") };
                self.fail(check, format!("{}{cause}", error.public));
                None
            }
        }
    }
}

/// Makes every check and prints what was found; 1 when something is wrong.
pub(super) async fn run(config: Result<Config>, out: &Out) -> Result<ExitCode> {
    let mut found = Findings(Vec::new());
    if let Some(config) = found.keep("configuration", config) {
        found.ok("configuration", "every setting is valid");
        check(&config, &mut found).await;
    }
    let failed = found.0.iter().any(|(_, state, _)| *state == State::Fail);
    let rows: Vec<Value> = found
        .0
        .iter()
        .map(|(check, state, message)| {
            json!({ "check": check, "state": state.word(), "message": message })
        })
        .collect();
    if out.is_json() {
        out.object(&json!({ "is_healthy": !failed, "checks": rows }))?;
    } else {
        let line = |(check, state, message): &(&str, State, String)| {
            format!("{:<4}  {check:<14}  {message}\n", state.word())
        };
        out.text(&found.0.iter().map(line).collect::<String>())?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn check(config: &Config, found: &mut Findings) {
    core_dumps(found);
    descriptors(config, found);
    if let Some(tls) = &config.tls {
        let (clock, _) = super::sources();
        tls_files(tls, clock.wall_us(), found);
    }
    if !folder(&config.folder, found) {
        return;
    }
    let secrets = found.keep("secrets", Secrets::read(&config.secrets_file));
    if secrets.is_some() {
        let path = config.secrets_file.display();
        found.ok("secrets", format!("{path} can be read, by its owner alone"));
    }
    counter_file(&Folder::existing(&config.folder), found);
    let (clock, entropy) = super::sources();
    let opened = Store::open(&config.location, false, clock, entropy).await;
    let Some(store) = found.keep("database", opened) else { return };
    let asked = database(&store, config, secrets.is_some(), found).await;
    found.keep("database", asked);
    server(config, &store, found).await;
    store.close().await;
}

fn core_dumps(found: &mut Findings) {
    let limit = getrlimit(Resource::Core).current;
    let dumpable = dumpable_behavior();
    match (limit, dumpable) {
        (Some(0), Ok(DumpableBehavior::NotDumpable)) => {
            found.ok("core dumps", "are off, so no secret can end in one");
        }
        (_, _) => found.warn(
            "core dumps",
            "cannot be switched off here and could hold secrets; set `ulimit -c 0`",
        ),
    }
}

fn descriptors(config: &Config, found: &mut Findings) {
    let connections = config.limits.connections_max;
    let most = descriptors_max().map_or("any number".to_owned(), |most| most.to_string());
    let message = format!("a server can have {most} open, for {connections} connections");
    if has_descriptors_for(connections) {
        found.ok("descriptors", message);
    } else {
        let advice = "raise the hard limit (`ulimit -Hn`, LimitNOFILE) or lower connections_max";
        found.warn("descriptors", format!("{message}; {advice}"));
    }
}

fn tls_files(tls: &Tls, now: i64, found: &mut Findings) {
    let chain = CertificateDer::pem_file_iter(&tls.cert).and_then(Iterator::collect);
    let chain: Vec<CertificateDer<'_>> = match chain {
        Ok(chain) => chain,
        Err(_) => {
            let path = tls.cert.display();
            return found.fail("tls", format!("{path} is no readable PEM certificate chain"));
        }
    };
    if chain.is_empty() {
        return found.fail("tls", format!("{} holds no certificate", tls.cert.display()));
    }
    expiry(&chain, now, found);
    match PrivateKeyDer::from_pem_file(&tls.key) {
        Ok(_) => found.ok("tls", format!("{} and its key can be read", tls.cert.display())),
        Err(_) => found.fail("tls", format!("{} is no readable PEM key", tls.key.display())),
    }
}

/// Whether a certificate of the chain ends, or has ended.
fn expiry(chain: &[CertificateDer<'_>], now: i64, found: &mut Findings) {
    let ends: Option<Vec<i64>> = chain.iter().map(|der| certificate::not_after(der)).collect();
    let Some(end) = ends.and_then(|ends| ends.into_iter().min()) else {
        return found.fail("certificate", "its dates cannot be read; is it an X.509 certificate?");
    };
    let on = rfc3339(end);
    if end <= now {
        found.fail("certificate", format!("expired on {on}; clients refuse it, renew it"));
    } else if end - now < CERTIFICATE_ENDS_SOON_US {
        found.warn("certificate", format!("expires on {on}; renew it and restart the server"));
    } else {
        found.ok("certificate", format!("is good until {on}"));
    }
}

/// The data folder; whether it is there.
fn folder(path: &Path, found: &mut Findings) -> bool {
    let shown = path.display();
    let Ok(metadata) = fs::metadata(path) else {
        found.fail("folder", format!("{shown} does not exist; run `keyward init`, or use --data"));
        return false;
    };
    if !metadata.is_dir() {
        found.fail("folder", format!("{shown} is no folder"));
        return false;
    }
    if access(path, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        found.fail("folder", format!("{shown} cannot be written by this account"));
    } else if metadata.permissions().mode() & 0o077 != 0 {
        found.warn("folder", format!("{shown} can be entered by others; run `chmod 700` on it"));
    } else {
        found.ok("folder", format!("{shown} belongs to this account alone"));
    }
    if let Ok(disk) = statvfs(path) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let message = format!("{} MiB are free", free >> 20);
        if free < FREE_BYTES_FAIL {
            found.fail("disk", format!("{message}; changes are about to fail, make room"));
        } else if free < FREE_BYTES_LOW {
            found.warn("disk", format!("{message}; make room before the disk is full"));
        } else {
            found.ok("disk", message);
        }
    }
    true
}

fn counter_file(folder: &Folder, found: &mut Findings) {
    let path = folder.counters();
    match fs::metadata(&path) {
        Ok(_) if access(&path, Access::READ_OK | Access::WRITE_OK).is_ok() => {
            found.ok("counters", format!("{} can be written", path.display()));
        }
        Ok(_) => {
            let message = "cannot be written by this account; counts would begin in a new file";
            found.warn("counters", format!("{} {message}", path.display()));
        }
        Err(_) => found.ok("counters", "there is no counter file yet; the server makes it"),
    }
}

async fn database(
    store: &Store,
    config: &Config,
    has_secrets: bool,
    found: &mut Findings,
) -> Result<()> {
    let mut conn = store.read().await?;
    match schema::found(&mut conn).await? {
        Found::Nothing => {
            found.fail("database", "holds no Keyward store; run `keyward init`");
            return Ok(());
        }
        Found::Version(version) if version > schema::VERSION => {
            found.fail(
                "database",
                format!("is of schema {version}, newer than this binary; start the newer binary"),
            );
            return Ok(());
        }
        Found::Version(version) => {
            found.ok("database", format!("{}, schema {version}", config.location.engine()))
        }
    }
    transfer::refuse_if_moved(&mut conn).await?;
    settings(&engine::engine(&mut conn).await?, found);
    let asked = (store.clock.boot_us(), store.clock.wall_us());
    let database_us = conn.now_us(&store.clock).await?;
    let took = store.clock.boot_us() - asked.0;
    let apart = database_us.abs_diff(asked.1 + took / 2);
    if apart > CLOCK_APART_US {
        let seconds = apart / 1_000_000;
        let message = "s from the database's; dates of keys go by the database's clock";
        found.warn("clock", format!("this machine's clock is {seconds} {message}"));
    } else {
        found.ok("clock", "this machine and the database agree");
    }
    if let Some(since) = schema::meta(&mut conn, RESTORE_PENDING).await? {
        found.warn(
            "restore",
            format!(
                "every key is refused, because what was revoked after {since} is unknown; revoke \
                 it again and run `keyward restore --confirm`"
            ),
        );
    }
    for environment in environments::all_any_environment(&mut conn).await? {
        base_url(&environment, found);
    }
    if has_secrets {
        let keyring = Keyring::open(config.secrets_file.clone())?;
        let fits = keyring.check(&mut conn).await;
        let opens = Directory::load(&mut conn, &keyring.secrets(), 0).await;
        let both = found.keep("peppers", fits).and(found.keep("peppers", opens));
        if both.is_some() {
            found.ok("peppers", "belong to this store and open its signing keys");
        }
    }
    Ok(())
}

fn settings(engine: &Engine, found: &mut Findings) {
    match engine {
        Engine::Sqlite { version, journal } if journal == "wal" => {
            found.ok("engine", format!("SQLite {version} with a write-ahead log"));
        }
        Engine::Sqlite { version, journal } => {
            let message = "is this folder on a network file system? SQLite needs a local one";
            found.fail("engine", format!("SQLite {version}, journal mode {journal}; {message}"));
        }
        Engine::Postgres { is_standby: true, .. } => {
            let message = "this PostgreSQL is a standby; use the address of the primary";
            found.fail("engine", message);
        }
        Engine::Postgres { version, synchronous_commit, synchronous_standbys, fsync, .. } => {
            found.ok("engine", format!("PostgreSQL {version}, the primary"));
            if fsync != "on" {
                let message = "fsync is off: a crash can take revocations back; switch it on";
                found.fail("durability", message);
            } else if synchronous_commit == "off" {
                found.ok("durability", "synchronous_commit is off; Keyward's commits set it on");
            } else if engine.has_asynchronous_standby() {
                found.warn(
                    "durability",
                    "a standby is not synchronous: after a failover to it revocations can be \
                     missing; set synchronous_standby_names",
                );
            } else if synchronous_standbys.is_empty() {
                found.ok("durability", "there is no standby; make one synchronous before using it");
            } else {
                found.ok("durability", format!("commits wait for {synchronous_standbys}"));
            }
        }
    }
}

fn base_url(environment: &Environment, found: &mut Findings) {
    let (slug, url) = (&environment.slug, &environment.public_url);
    let host = environment.host.rsplit_once(':').map_or(&*environment.host, |(host, _)| host);
    let is_local = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
    if url.starts_with("https://") || is_local {
        found.ok("base URL", format!("{slug} is at {url}"));
    } else {
        let what = if *slug == FIRST_ENVIRONMENT { "--public-url" } else { "`keyward env update`" };
        found.warn(
            "base URL",
            format!("{slug} is at {url}: tokens travel in plain text; set https:// with {what}"),
        );
    }
}

/// Whether a server runs on this folder, and is ready.
async fn server(config: &Config, store: &Store, found: &mut Findings) {
    let folder = Folder::existing(&config.folder);
    let lock = folder.lock();
    match &lock {
        Ok(_) => return found.ok("server", "none runs on this folder"),
        Err(error) if error.code == "FOLDER_IN_USE" => {}
        Err(error) => return found.fail("server", error.public.clone()),
    }
    let Some(stream) = socket::connect(&folder).await else {
        return found.warn("server", "one runs on this folder, and has no socket for this account");
    };
    let host = first_host(store).await.unwrap_or_default();
    let request =
        Request { method: "GET", path: "/readyz", host: &host, content_type: None, body: &[] };
    match socket::ask(stream, &request).await {
        Ok(answer) if answer.status == 200 => found.ok("server", "runs and is ready"),
        Ok(_) => {
            let engine = match config.location {
                Location::File(_) => "is the disk full?",
                Location::Server(_) => "does the database answer?",
            };
            found.fail("server", format!("runs and is not ready; {engine}"));
        }
        Err(error) => found.fail("server", error.public),
    }
}

async fn first_host(store: &Store) -> Result<String> {
    let found = environments::by_slug(&mut store.read().await?, FIRST_ENVIRONMENT).await?;
    found.map(|found| found.host).ok_or_else(|| Error::not_found("environment"))
}
