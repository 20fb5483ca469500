//! The contract with the terminal: commands, flags, what is printed where, and exit codes.
//!
//! Answers go to standard output, as aligned tables and sentences or (`--json`) as one JSON
//! document with the field names of the HTTP API; everything else goes to standard error. 0 is
//! success, 1 a failure that is told in a sentence, 2 a command that cannot be understood. Commands
//! that change something are a second process on the store: they go through `ops` like the
//! server's handlers and wait until the change is in force (`session`). A file for each noun.

use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask,
};

use crate::clock::{Clock, Entropy};
use crate::config::{self, Config, LogFormat};
use crate::error::{Error, Kind, Result};

mod api;
mod app;
mod certificate;
mod demo;
mod doctor;
mod env;
mod import;
pub(crate) mod init;
mod input;
mod key;
mod org;
mod out;
mod serve;
mod session;
mod socket;
mod transfer;
mod user;
mod verify;

pub use init::initialise_if_empty;
use out::Out;
use session::Session;

/// Issues API keys to the users and organizations of your product, and says on every call whose
/// key it is and what it may do.
#[derive(Parser)]
#[command(name = "keyward", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 success, 1 failure, 2 a command that cannot be understood.\n\
    Settings can also be given as KEYWARD_* environment variables and in a TOML file; \
    `keyward config` explains all of them."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The heading in every command's help under which these stand, after the command's own.
const GLOBAL: &str = "Global options";

/// What every command takes.
#[derive(Args)]
struct Global {
    /// The data folder [default: ./keyward-data]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    data: Option<String>,
    /// A PostgreSQL database instead of the embedded one (postgres://…)
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "URL", hide_env_values = true)]
    database: Option<String>,
    /// A configuration file [default: keyward.toml in the data folder]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    /// The secrets file [default: secrets.toml in the data folder]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    secrets_file: Option<String>,
    /// The environment that the command is about
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "SLUG")]
    #[arg(default_value = "default")]
    env: String,
    /// Print one JSON document
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests; initialise an empty store first
    Serve(serve::ServeFlags),
    /// Make a store and print the credentials of its first application, once
    Init(init::InitFlags),
    /// Serve from a throw-away store with one API, one user and one key
    Demo(demo::DemoFlags),
    /// Look for what is wrong with this installation, and say what to do
    Doctor,
    /// Verify the key on standard input; exits 1 if it is refused
    Verify(verify::VerifyFlags),
    /// Copy the store to a new file, also while the server runs
    Backup(transfer::BackupFlags),
    /// Put a backup in the place of the store, or (--confirm) release its keys
    Restore(transfer::RestoreFlags),
    /// Carry the store to another database, with ids, counts and the audit log
    Move(transfer::MoveFlags),
    /// Print the OpenAPI document
    Openapi,
    /// Print every setting with its default and its explanation
    Config,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Environments: the tenants
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// Applications: machine-to-machine clients of the management API
    #[command(subcommand)]
    App(app::AppCommand),
    /// APIs that you protect, and their scopes
    #[command(subcommand)]
    Api(api::ApiCommand),
    /// Users: people who can own keys
    #[command(subcommand)]
    User(user::UserCommand),
    /// Organizations, and who is a member
    #[command(subcommand)]
    Org(org::OrgCommand),
    /// Keys
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// Keeps what the process knows to itself: no core dumps, which would hold every secret in memory,
/// and no files that others can read. For the first line of `main`.
pub fn keep_to_itself() {
    // OK to ignore: where neither is permitted, `doctor` says so.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    umask(Mode::RWXG | Mode::RWXO);
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return misunderstood(&error),
    };
    let out = Out::new(cli.global.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            out.failed(&Error::unavailable("the process may not start threads").because(cause));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli, &out)) {
        Ok(code) => code,
        Err(error) => {
            // The operator is the log's reader here, so the causes are said at once.
            if matches!(error.kind, Kind::Internal | Kind::Unavailable) && error.cause.is_some() {
                tracing::error!(cause = error.chain(), "{error}");
            }
            out.failed(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says why a command was not understood, or shows the help that was asked for. The parser repeats
/// what it did not expect, which may be a key: such a word is not repeated.
fn misunderstood(error: &clap::Error) -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if error.use_stderr() && repeats_a_secret(&error.to_string(), &words) {
        let kind = error.kind().as_str().unwrap_or("the command cannot be understood");
        Out::new(false).note(&format!(
            "{kind}; it is not repeated because it may be a secret. What others on this machine \
             can read is no place for one: put the key on standard input"
        ));
    } else {
        // OK to ignore: nobody is there to read it.
        let _ = error.print();
    }
    // OK to cast: clap's exit codes are 0 and 2.
    ExitCode::from(error.exit_code() as u8)
}

/// Whether `told` holds one of `words` that may be a secret: what looks like a key of ours, and
/// where a key is verified, which may be of any form, every word that is no flag.
fn repeats_a_secret(told: &str, words: &[String]) -> bool {
    let verifies = words.iter().any(|word| word == "verify");
    words.iter().any(|word| {
        let value = word
            .strip_prefix('-')
            .map_or(Some(word.as_str()), |flag| flag.split_once('=').map(|(_, value)| value));
        let may_be_any = |value: &str| verifies && told.contains(&format!("'{value}'"));
        let is_ours = |text: &str| keyward_core::shape(text) != keyward_core::Shape::Foreign;
        let mut parts = word.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        value.is_some_and(may_be_any) || parts.any(|part| is_ours(part) && told.contains(part))
    })
}

async fn run(cli: Cli, out: &Out) -> Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Openapi => out.text(crate::http::OPENAPI)?,
        Command::Config => out.text(config::DEFAULTS)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut script);
            out.text(&String::from_utf8_lossy(&script))?;
        }
        Command::Demo(flags) => demo::run(flags, out).await?,
        Command::Serve(flags) => serve::run(load(&global, flags.settings(), "info")?, out).await?,
        Command::Init(flags) => {
            init::run(&load(&global, flags.settings(), QUIET)?, out).await?;
        }
        Command::Doctor => return doctor::run(load(&global, Vec::new(), "off"), out).await,
        Command::Backup(flags) => transfer::backup(&quiet(&global)?, flags, out).await?,
        Command::Restore(flags) => {
            transfer::restore(&quiet(&global)?, flags, &global.env, out).await?
        }
        Command::Move(flags) => transfer::carry(&quiet(&global)?, flags, out).await?,
        Command::Verify(flags) => {
            let session = Session::open(&quiet(&global)?, &global.env, out).await?;
            let valid = verify::run(flags, &session).await;
            session.close().await;
            return valid.map(|valid| if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Env(command) => {
            let session = Session::open(&quiet(&global)?, &global.env, out).await?;
            let done = env::run(command, &session).await;
            session.close().await;
            done?;
        }
        Command::App(_)
        | Command::Api(_)
        | Command::User(_)
        | Command::Org(_)
        | Command::Key(_) => {
            let session = Session::open(&quiet(&global)?, &global.env, out).await?;
            let done = noun(command, &session).await;
            session.close().await;
            done?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn noun(command: Command, session: &Session) -> Result<()> {
    match command {
        Command::App(command) => app::run(command, session).await,
        Command::Api(command) => api::run(command, session).await,
        Command::User(command) => user::run(command, session).await,
        Command::Org(command) => org::run(command, session).await,
        Command::Key(command) => key::run(command, session).await,
        Command::Serve(_)
        | Command::Init(_)
        | Command::Demo(_)
        | Command::Doctor
        | Command::Verify(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Move(_)
        | Command::Openapi
        | Command::Config
        | Command::Completions { .. }
        | Command::Env(_) => Err(Error::internal("this command is no noun of one environment")),
    }
}

/// The log filter of commands that end by themselves: what they print is their answer.
const QUIET: &str = "warn";

fn quiet(global: &Global) -> Result<Config> {
    load(global, Vec::new(), QUIET)
}

/// Gathers the settings and starts the log, at `log` unless somebody chose a filter.
fn load(global: &Global, settings: config::Flags, log: &str) -> Result<Config> {
    let mut flags = settings;
    for (name, value) in [
        ("data", &global.data),
        ("database", &global.database),
        ("secrets_file", &global.secrets_file),
    ] {
        flags.extend(value.clone().map(|value| (name, value)));
    }
    let config = Config::load(global.config.as_deref(), flags)?;
    let filter = config.log_filter.as_deref().unwrap_or(log);
    crate::telemetry::start_logging(filter, config.log_format == LogFormat::Json);
    Ok(config)
}

/// The clocks and the random generator of a command.
fn sources() -> (Clock, Entropy) {
    (Clock::system(), Entropy::system())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_is_explained() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} is not explained");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {}", argument.get_id());
            }
            command.get_subcommands().for_each(|command| walk(command, &path));
        }
        walk(&Cli::command(), "");
    }

    #[test]
    fn what_every_command_takes_stands_under_a_heading_of_its_own() {
        let globals: Vec<_> = Cli::command().get_arguments().cloned().collect();
        for argument in globals.iter().filter(|argument| argument.is_global_set()) {
            assert_eq!(argument.get_help_heading(), Some(GLOBAL), "{}", argument.get_id());
        }
        assert!(globals.len() >= 6, "{globals:?}");
    }

    #[test]
    fn a_word_that_may_be_a_key_is_not_repeated_and_a_mistyped_flag_is() {
        let told = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            let all = std::iter::once("keyward".to_owned()).chain(words.clone());
            let error = Cli::try_parse_from(all).err().expect("is misunderstood");
            !repeats_a_secret(&error.to_string(), &words)
        };
        let prefix = keyward_core::Prefix::parse("k_live").expect("a prefix");
        let key = keyward_core::Secret::mint(&prefix, &[7; 32]);
        let key = key.expose();
        for line in [
            "verify legacy-canary".to_owned(),
            "verify --ip legacy-canary".to_owned(),
            "verify --ip=legacy-canary".to_owned(),
            format!("verify {key}"),
            format!("verify secret-token:{key}"),
            key.to_owned(),
            format!("key {key}"),
            format!("user list {key}"),
            format!("verify --{key}"),
        ] {
            assert!(!told(&line), "{line}");
        }
        for line in ["verify --scop read:x", "key lst", "serve extra", "verify --data x --nope"] {
            assert!(told(line), "{line}");
        }
    }

    #[test]
    fn the_contract_for_scripts_is_understood() {
        for line in [
            "keyward init --data d --database postgres://h/d --public-url https://a --json",
            "keyward serve --data d --database postgres://h/d --listen 127.0.0.1:1 \
             --public-url https://a --tls-cert c --tls-key k",
            "keyward --data d --database postgres://h/d key list",
            "keyward backup dest --with-secrets --data d",
            "keyward restore src --data d",
            "keyward restore --confirm --data d",
            "keyward move --to postgres://h/d",
            "keyward verify --json",
        ] {
            if let Err(error) = Cli::try_parse_from(line.split_whitespace()) {
                panic!("{line}: {error}");
            }
        }
        assert!(Cli::try_parse_from(["keyward", "restore"]).is_err());
    }
}
