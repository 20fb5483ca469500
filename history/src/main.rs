//! `keyward-history`: several real nodes on one PostgreSQL under faults, and a proof over what
//! their clients saw. `scripts/history` builds and starts it.
//!
//! `cluster` starts the processes and ends them, `proxy` stands between each node and its database,
//! `plan` says from the seed what is done to them and `faults` does it, `load` is the clients,
//! `event` what they record, `check` what must hold of it, `summary` what else can be seen in it.
//! The same seed makes the same plan and the same changes; which of them meet is up to the machine.

#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

mod chance;
mod check;
mod clock;
mod cluster;
mod event;
mod faults;
mod load;
mod plan;
mod proxy;
mod run;
mod summary;
mod wire;

/// Runs several Keyward nodes under faults, records what clients saw, and checks it.
#[derive(Parser)]
#[command(name = "history", max_term_width = 100)]
#[command(after_help = "Exit codes: 0 everything held, 1 something did not, 2 a wrong command.")]
struct Arguments {
    /// Which faults and changes; a random one is printed when none is given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long clients and faults run
    #[arg(long, value_name = "S", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..=36_000))]
    seconds: u64,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// The server to run
    #[arg(long, value_name = "BINARY", required_unless_present = "check")]
    keyward: Option<PathBuf>,
    /// Where to write the history [default: ./history-SEED.ndjson, if something did not hold]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Check a history that was recorded before
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seconds", "nodes", "out"])]
    check: Option<PathBuf>,
    /// Leave the folder with logs and data, and print where it is
    #[arg(long)]
    keep: bool,
    /// Starts and stops a PostgreSQL server
    #[arg(long, value_name = "SCRIPT", default_value = "scripts/scratch-postgres", hide = true)]
    scratch_postgres: PathBuf,
}

/// Violations that are printed.
const SHOWN_MAX: usize = 20;
/// Beyond the run itself: starting, waiting for what is in flight, stopping and counting.
const BESIDE_MAX: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match try_main(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("history: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything held.
fn try_main(arguments: &Arguments) -> cluster::Result<bool> {
    if let Some(path) = &arguments.check {
        return judge(path, &path.display().to_string());
    }
    let keyward = arguments.keyward.as_deref().unwrap_or(Path::new("keyward"));
    let keyward = keyward.canonicalize().map_err(|e| format!("{}: {e}", keyward.display()))?;
    let folder = tempfile::Builder::new().prefix("keyward-history-").tempdir();
    let mut folder = folder.map_err(|error| format!("no temporary folder: {error}"))?;
    folder.disable_cleanup(arguments.keep);
    if arguments.keep {
        println!("folder {}", folder.path().display());
    }
    // The standard library's hash maps are seeded by the machine.
    let random = || RandomState::new().build_hasher().finish() % 1_000_000;
    let seed = arguments.seed.unwrap_or_else(random);
    let nodes = usize::try_from(arguments.nodes).unwrap_or(1);
    println!("seed {seed}, {} s, {nodes} nodes", arguments.seconds);
    let recorded = arguments.out.clone().unwrap_or_else(|| folder.path().join("history.ndjson"));
    let order = run::Order {
        seed,
        seconds: arguments.seconds,
        nodes,
        keyward,
        scratch_postgres: arguments.scratch_postgres.clone(),
        folder: folder.path().to_path_buf(),
        history: recorded.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let limit = Duration::from_secs(arguments.seconds) + BESIDE_MAX;
    let ran = runtime.block_on(async {
        tokio::select! {
            ran = tokio::time::timeout(limit, run::run(order)) => {
                ran.unwrap_or_else(|_| Err(format!("not over after {} s", limit.as_secs())))
            }
            why = told_to_end() => Err(why),
        }
    });
    // What still runs holds the processes; it ends with the runtime.
    drop(runtime);
    ran?;
    let held = judge(&recorded, &format!("seed {seed}"))?;
    if !held && arguments.out.is_none() {
        let kept = PathBuf::from(format!("history-{seed}.ndjson"));
        std::fs::copy(&recorded, &kept).map_err(|error| error.to_string())?;
        println!("the history is in {}", kept.display());
    }
    Ok(held)
}

/// Ends when the process is told to end.
async fn told_to_end() -> String {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    "told to end".to_owned()
}

/// Checks a recorded history and prints what it shows; whether everything held.
fn judge(path: &Path, name: &str) -> cluster::Result<bool> {
    let events = event::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    print!("{}", summary::summary(&events));
    let violations = check::check(&events);
    for violation in violations.iter().take(SHOWN_MAX) {
        println!("VIOLATION {name}: {violation}");
    }
    if violations.len() > SHOWN_MAX {
        println!("and {} more", violations.len() - SHOWN_MAX);
    }
    match violations.len() {
        0 => println!("everything held"),
        number => println!("{number} violations"),
    }
    Ok(violations.is_empty())
}
