//! `keyward backup`, `restore` and `move`: what they are asked and how they report. How a store is
//! carried is in `store::transfer`.

use std::path::PathBuf;

use serde_json::json;

use super::out::Out;
use super::session::{self, Session, open_store};
use crate::clock::rfc3339;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::ops::environments as changes;
use crate::progress::Progress;
use crate::store::transfer::{self, RestoreReport, RestoreTarget};
use crate::store::{Location, ServerUrl};

/// Flags of `keyward backup`.
#[derive(clap::Args)]
pub(super) struct BackupFlags {
    /// The file to make; it must not exist
    dest: PathBuf,
    /// Put a copy of the secrets file beside it
    #[arg(long)]
    with_secrets: bool,
}

/// Takes a backup.
pub(super) async fn backup(config: &Config, flags: BackupFlags, out: &Out) -> Result<()> {
    let (clock, entropy) = super::sources();
    let store = open_store(config, clock, entropy).await?;
    let secrets = flags.with_secrets.then_some(config.secrets_file.as_path());
    let taken = transfer::backup(&store, &flags.dest, secrets, &Progress::on_terminal()).await;
    store.close().await;
    let taken = taken?;
    let object = json!({
        "path": taken.path.to_string_lossy(),
        "secrets": taken.secrets.as_ref().map(|path| path.to_string_lossy()),
        "taken_at": rfc3339(taken.taken_at),
        "rows": taken.rows,
        "keys": taken.keys,
        "bytes": taken.bytes,
    });
    let mut sentence = format!(
        "{} holds the store as of {}, with {} keys.",
        taken.path.display(),
        rfc3339(taken.taken_at),
        taken.keys
    );
    match &taken.secrets {
        Some(path) => sentence.push_str(&format!(
            "\n{} holds the secrets; whoever has both can read signing keys.",
            path.display()
        )),
        None => sentence.push_str(&format!(
            "\nWithout a copy of {} it is worth nothing; keep one apart from it.",
            config.secrets_file.display()
        )),
    }
    out.done(&object, &sentence)
}

/// Flags of `keyward restore`.
#[derive(clap::Args)]
pub(super) struct RestoreFlags {
    /// The backup
    #[arg(required_unless_present = "confirm")]
    src: Option<PathBuf>,
    /// Release the keys of a store that was restored, now that later revocations were repeated
    #[arg(long, conflicts_with = "src")]
    confirm: bool,
}

/// Restores a backup, or releases the keys of a restored store.
pub(super) async fn restore(
    config: &Config,
    flags: RestoreFlags,
    env: &str,
    out: &Out,
) -> Result<()> {
    let Some(source) = flags.src else {
        return confirm(config, env, out).await;
    };
    let (clock, entropy) = super::sources();
    let context = session::operator(&clock, &entropy);
    let folder = Folder::existing(&config.folder);
    let target = RestoreTarget {
        location: &config.location,
        folder: &folder,
        secrets: &config.secrets_file,
        clock,
        entropy,
    };
    let report = transfer::restore(&source, &target, &context, &Progress::on_terminal()).await?;
    let kept = &report.kept;
    let object = json!({
        "backup_taken_at": report.backup_taken_at,
        "backup_version": report.backup_version,
        "rows": report.rows,
        "keys": report.keys,
        "replaced": report.replaced.as_ref().map(|path| path.to_string_lossy()),
        "replaced_unreadable": report.replaced_unreadable,
        "revocations_unknown_since": report.revocations_unknown_since,
        "kept": {
            "keys": kept.keys,
            "secrets": kept.secrets,
            "owners": kept.owners,
            "memberships": kept.memberships,
            "apis": kept.apis,
            "applications": kept.applications,
            "audit_records": kept.audit_records,
        },
        "keys_without_secret": report.keys_without_secret,
        "applications_without_secret": report.applications_without_secret,
        "secrets_installed": report.secrets_installed,
    });
    out.done(&object, &told(&report))
}

/// A restore in sentences.
fn told(report: &RestoreReport) -> String {
    let mut lines = vec![format!(
        "The store of {} is restored, with {} keys.",
        report.backup_taken_at, report.keys
    )];
    if let Some(path) = &report.replaced {
        lines.push(format!("What it replaced is kept as {}.", path.display()));
    }
    if report.keys_without_secret > 0 {
        lines.push(format!(
            "{} keys were rotated after the backup; rotate them again to use them.",
            report.keys_without_secret
        ));
    }
    if report.applications_without_secret > 0 {
        lines.push(format!(
            "{} applications have no secret any more; use `keyward app rotate-secret`.",
            report.applications_without_secret
        ));
    }
    if let Some(since) = &report.revocations_unknown_since {
        lines.push(format!(
            "Whatever was revoked after {since} is not known here, so every key is refused (503). \
             Revoke it again, then run `keyward restore --confirm`."
        ));
    }
    lines.join("\n")
}

async fn confirm(config: &Config, env: &str, out: &Out) -> Result<()> {
    let session = Session::open(config, env, out).await?;
    let confirmed = async {
        let (store, env, context) = (&session.store, session.env(), &session.context);
        let done = changes::confirm_restore(store, env, context).await?;
        session.widened(done).await
    }
    .await;
    session.close().await;
    confirmed?;
    out.done(&json!({ "confirmed": true }), "The keys of the restored store are released.")
}

/// Flags of `keyward move`.
#[derive(clap::Args)]
pub(super) struct MoveFlags {
    /// Where to: postgres://…, or a data folder for the embedded database
    #[arg(long, value_name = "URL|DIR")]
    to: String,
}

/// Carries the store to another database.
pub(super) async fn carry(config: &Config, flags: MoveFlags, out: &Out) -> Result<()> {
    let is_url = flags.to.contains("://");
    let is_server = flags.to.starts_with("postgres://") || flags.to.starts_with("postgresql://");
    let to = if is_server {
        Location::Server(ServerUrl::new(flags.to))
    } else if is_url {
        let public = "--to must be a postgres:// address or a folder";
        return Err(Error::invalid("BAD_DATABASE_URL", public));
    } else {
        Location::File(Folder::create(std::path::Path::new(&flags.to))?.database())
    };
    let folder = Folder::existing(&config.folder);
    let (clock, entropy) = super::sources();
    let progress = Progress::on_terminal();
    let context = session::operator(&clock, &entropy);
    let sources = (clock, entropy);
    let report =
        transfer::move_store(&config.location, &to, &folder, sources, &context, &progress).await?;
    let object = json!({
        "to": report.to,
        "rows": report.rows,
        "keys": report.keys,
        "tables": report.tables,
        "set_aside": report.set_aside.as_ref().map(|path| path.to_string_lossy()),
        "already_moved": report.already_moved,
    });
    let sentence = if report.already_moved {
        format!("The store is at {} already.", report.to)
    } else {
        format!(
            "The store is at {} now: {} keys, {} rows in {} tables, compared and equal.\n\
             The secrets file and the data folder are still needed: {}.",
            report.to,
            report.keys,
            report.rows,
            report.tables,
            config.secrets_file.display()
        )
    };
    out.done(&object, &sentence)
}
