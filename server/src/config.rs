//! Settings: gathered raw from four places, then checked into one [`Config`] that cannot be wrong.
//!
//! Flags come before the environment (`KEYWARD_*`), the environment before the configuration file,
//! and that before `defaults.toml`, which is built in and is also the manual. Until everything has
//! been checked a value keeps the name of the place it came from, so that an error can say which
//! setting is wrong and where it stands. The only file that reads environment variables.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::store::{Location, ServerUrl};

/// Every setting with its default and its explanation.
pub const DEFAULTS: &str = include_str!("../defaults.toml");
/// The configuration file that is read from the data folder when no other is named.
pub const FILE_NAME: &str = "keyward.toml";

/// Every setting's name. `defaults.toml` explains each of them.
const SETTINGS: &[&str] = &[
    "data",
    "database",
    "database_file",
    "secrets_file",
    "listen",
    "public_url",
    "tls_cert",
    "tls_key",
    "metrics_listen",
    "lease",
    "body_bytes_max",
    "import_body_bytes_max",
    "token_cache_max",
    "connections_max",
    "connections_per_address_max",
    "request_timeout_seconds",
    "shutdown_grace_seconds",
    "log",
    "log_format",
];

/// What the process was told to do, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data folder.
    pub folder: PathBuf,
    /// The database.
    pub location: Location,
    /// The secrets file.
    pub secrets_file: PathBuf,
    /// Where requests are accepted.
    pub listen: SocketAddr,
    /// The base URL of the environment `default`, if one was given.
    pub public_url: Option<String>,
    /// Certificate and key, where TLS is served natively.
    pub tls: Option<Tls>,
    /// Where metrics are served without a token.
    pub metrics_listen: Option<SocketAddr>,
    /// How long the process may answer from memory.
    pub lease: Duration,
    /// What a single client can take of the process.
    pub limits: Limits,
    /// Whether verifications are counted. Switched off only to measure what counting costs.
    pub counting: bool,
    /// Which log lines are written, in `tracing`'s filter language; `None` when nobody said.
    pub log_filter: Option<String>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// How long requests in flight may take to end after SIGTERM.
    pub shutdown_grace: Duration,
}

/// The files of a TLS server.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a single client can take of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body.
    pub body_bytes_max: usize,
    /// The largest body of a batch.
    pub import_body_bytes_max: usize,
    /// How many callers' tokens are remembered as already checked.
    pub token_cache_max: usize,
    /// How many connections are open at once.
    pub connections_max: usize,
    /// How many of them come from one address; 0 is as many as there are.
    pub connections_per_address_max: usize,
    /// How long a request's head may take, and a connection may be idle.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 64 << 10,
            import_body_bytes_max: 4 << 20,
            token_cache_max: 10_000,
            connections_max: 10_000,
            connections_per_address_max: 1_000,
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// What the command line gives: names of settings with values, as text.
pub type Flags = Vec<(&'static str, String)>;

impl Config {
    /// Gathers the settings of this process.
    ///
    /// # Errors
    /// `Invalid` that names the setting and the place where it stands. No value is repeated that
    /// could be a secret.
    pub fn load(file: Option<&Path>, flags: Flags) -> Result<Self> {
        Raw::gather(file, flags, &variable)?.check()
    }

    /// Settings from `flags` and the defaults alone, whatever the environment and the files say:
    /// a demonstration must not reach a real database.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn isolated(flags: Flags) -> Result<Self> {
        Raw::gather(Some(Path::new("/dev/null")), flags, &|_| None)?.check()
    }

    /// The base URL of the environment `default` when none was given: the listen address.
    pub fn base_url(&self) -> String {
        self.public_url.clone().unwrap_or_else(|| {
            let scheme = if self.tls.is_some() { "https" } else { "http" };
            format!("{scheme}://{}", self.listen)
        })
    }
}

/// An environment variable; an empty one counts as not set.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Flag,
    Environment,
    File(PathBuf),
    Default,
}

/// A value that has not been checked yet.
#[derive(Clone)]
struct Value {
    text: String,
    origin: Origin,
}

/// Settings as they were found, each from the first place that has it.
struct Raw {
    values: BTreeMap<&'static str, Value>,
    counting: bool,
}

impl Raw {
    fn gather(
        file: Option<&Path>,
        flags: Flags,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let mut raw = Self { values: BTreeMap::new(), counting: true };
        raw.counting = variable("KEYWARD_BENCH_COUNTING").as_deref() != Some("off");
        for (name, text) in flags {
            raw.add(name, text, Origin::Flag);
        }
        for name in SETTINGS {
            if let Some(text) = variable(&variable_of(name)) {
                raw.add(name, text, Origin::Environment);
            }
        }
        if let Some(filter) = variable("RUST_LOG") {
            raw.add("log", filter, Origin::Environment);
        }
        raw.add_file(
            file.map(Path::to_path_buf).or_else(|| variable("KEYWARD_CONFIG").map(PathBuf::from)),
        )?;
        for (name, text) in parse(DEFAULTS, &Origin::Default)? {
            raw.add(name, text, Origin::Default);
        }
        Ok(raw)
    }

    /// Keeps a value unless an earlier place gave one.
    fn add(&mut self, name: &'static str, text: String, origin: Origin) {
        self.values.entry(name).or_insert(Value { text, origin });
    }

    /// Reads the configuration file: the one that was named, or the data folder's own.
    fn add_file(&mut self, named: Option<PathBuf>) -> Result<()> {
        let (path, own) = match named {
            Some(path) => (path, false),
            None => {
                let data = self.values.get("data").map_or("keyward-data", |data| &data.text);
                (Path::new(data).join(FILE_NAME), true)
            }
        };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(cause) if own && cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // OK to go on: a folder that is closed to us is told where it is used.
            Err(_) if own && !path.exists() => return Ok(()),
            Err(cause) => {
                let public = format!(
                    "the configuration file {} cannot be read ({})",
                    path.display(),
                    cause.kind()
                );
                return Err(Error::invalid("BAD_CONFIGURATION", public));
            }
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let origin = Origin::File(path);
        for (name, text) in parse(&text, &origin)? {
            if own && name == "data" {
                let public = format!(
                    "`data` in {origin}: the data folder cannot be set by a file inside it; use \
                     --data or KEYWARD_DATA"
                );
                return Err(Error::invalid("BAD_CONFIGURATION", public));
            }
            let is_path =
                matches!(name, "data" | "database_file" | "secrets_file" | "tls_cert" | "tls_key");
            let text =
                if is_path { folder.join(text).to_string_lossy().into_owned() } else { text };
            self.add(name, text, origin.clone());
        }
        Ok(())
    }

    fn check(&self) -> Result<Config> {
        let folder = PathBuf::from(self.required("data")?);
        let body_bytes_max = self.number("body_bytes_max", 1_024..=16 << 20)?;
        let smallest = u64::try_from(body_bytes_max).unwrap_or(u64::MAX);
        Ok(Config {
            location: self.location(&folder)?,
            secrets_file: self
                .path("secrets_file")
                .unwrap_or_else(|| folder.join(crate::secrets::FILE_NAME)),
            listen: self
                .address("listen")?
                .ok_or_else(|| self.wrong("listen", "there is no address to listen on"))?,
            public_url: self.public_url()?,
            tls: self.tls()?,
            metrics_listen: self.address("metrics_listen")?,
            lease: self.lease()?,
            limits: Limits {
                body_bytes_max,
                import_body_bytes_max: self.number("import_body_bytes_max", smallest..=64 << 20)?,
                token_cache_max: self.number("token_cache_max", 16..=1_000_000)?,
                connections_max: self.number("connections_max", 1..=1_000_000)?,
                connections_per_address_max: self
                    .number("connections_per_address_max", 0..=1_000_000)?,
                idle_timeout: self.seconds("request_timeout_seconds", 1..=3_600)?,
            },
            counting: self.counting,
            log_filter: self.log_filter()?,
            log_format: self.log_format()?,
            shutdown_grace: self.seconds("shutdown_grace_seconds", 0..=600)?,
            folder,
        })
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.value(name).map(|value| value.text.as_str())
    }

    fn required(&self, name: &str) -> Result<&str> {
        self.text(name)
            .filter(|text| !text.is_empty())
            .ok_or_else(|| self.wrong(name, "it must not be empty"))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    /// Says what is wrong with a setting, and where it stands. `why` does not repeat the value:
    /// what was put in the wrong place may be a secret.
    fn wrong(&self, name: &str, why: &str) -> Error {
        let public = match self.value(name) {
            None => format!("`{name}`: {why}"),
            Some(value) => match value.origin {
                Origin::Flag => format!("--{}: {why}", name.replace('_', "-")),
                Origin::Environment => format!("{}: {why}", variable_of(name)),
                Origin::File(_) | Origin::Default => format!("`{name}` in {}: {why}", value.origin),
            },
        };
        Error::invalid("BAD_CONFIGURATION", public)
    }

    fn number(&self, name: &str, allowed: RangeInclusive<u64>) -> Result<usize> {
        let text = self.required(name)?;
        text.replace('_', "")
            .parse::<u64>()
            .ok()
            .filter(|number| allowed.contains(number))
            .and_then(|number| usize::try_from(number).ok())
            .ok_or_else(|| {
                let (from, to) = (allowed.start(), allowed.end());
                self.wrong(name, &format!("it is not a number between {from} and {to}"))
            })
    }

    fn seconds(&self, name: &str, allowed: RangeInclusive<u64>) -> Result<Duration> {
        Ok(Duration::from_secs(self.number(name, allowed)? as u64))
    }

    /// One of a few words, each with what it means.
    fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<T> {
        let text = self.required(name)?;
        words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(name, &format!("it is none of: {}", known.join(", ")))
        })
    }

    fn lease(&self) -> Result<Duration> {
        let seconds =
            self.word("lease", &[("default", 15), ("strict", 5), ("availability", 60)])?;
        Ok(Duration::from_secs(seconds))
    }

    fn log_format(&self) -> Result<LogFormat> {
        self.word("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)])
    }

    /// The filter that somebody chose; commands other than `serve` are quieter without one.
    fn log_filter(&self) -> Result<Option<String>> {
        let filter = self.required("log")?;
        filter
            .parse::<tracing_subscriber::EnvFilter>()
            .map_err(|_| self.wrong("log", "it is not a filter such as `info,keyward=debug`"))?;
        let chosen = self.value("log").is_some_and(|value| value.origin != Origin::Default);
        Ok(chosen.then(|| filter.to_owned()))
    }

    fn address(&self, name: &str) -> Result<Option<SocketAddr>> {
        let Some(text) = self.text(name).filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        // Names such as `localhost` are looked up once, at the start.
        let found = text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        let why = "it is not an address and port such as 127.0.0.1:8787";
        found.map(Some).ok_or_else(|| self.wrong(name, why))
    }

    fn public_url(&self) -> Result<Option<String>> {
        let Some(text) = self.text("public_url").filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let (url, _) = crate::ops::environments::base_url(text)
            .map_err(|error| self.wrong("public_url", &error.public))?;
        Ok(Some(url))
    }

    fn tls(&self) -> Result<Option<Tls>> {
        match (self.path("tls_cert"), self.path("tls_key")) {
            (Some(cert), Some(key)) => Ok(Some(Tls { cert, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.wrong("tls_cert", "it needs the private key, tls_key")),
            (None, Some(_)) => Err(self.wrong("tls_key", "it needs the certificate, tls_cert")),
        }
    }

    fn location(&self, folder: &Path) -> Result<Location> {
        // OK to clone an address: it is dropped again when the command ends.
        let (name, url) = match (self.value("database"), self.value("database_file")) {
            (None, None) => return Ok(Location::File(folder.join("keyward.db"))),
            (Some(url), None) => ("database", url.text.clone()),
            (Some(url), Some(file)) if url.origin == file.origin => {
                return Err(self.wrong("database", "give it or database_file, not both"));
            }
            (Some(url), Some(file)) if url.origin.rank() < file.origin.rank() => {
                ("database", url.text.clone())
            }
            (_, Some(file)) => {
                let text = fs::read_to_string(&file.text).map_err(|cause| {
                    // Not named: the address itself may have been put here.
                    let why = format!("the file that it names cannot be read ({})", cause.kind());
                    self.wrong("database_file", &why)
                })?;
                ("database_file", text.trim().to_owned())
            }
        };
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            // The value is not repeated: it may hold a password.
            let why = "it is not an address such as postgres://user@host:5432/name; for the \
                       embedded database leave it out and name a folder with --data";
            return Err(self.wrong(name, why));
        }
        Ok(Location::Server(ServerUrl::new(url)))
    }
}

impl Origin {
    /// Smaller comes first.
    fn rank(&self) -> u8 {
        match self {
            Origin::Flag => 0,
            Origin::Environment => 1,
            Origin::File(_) => 2,
            Origin::Default => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("the command line"),
            Origin::Environment => f.write_str("the environment"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Default => f.write_str("the built-in defaults"),
        }
    }
}

/// The environment variable of a setting.
fn variable_of(name: &str) -> String {
    format!("KEYWARD_{}", name.to_ascii_uppercase())
}

/// Reads a configuration file into names and texts.
fn parse(text: &str, origin: &Origin) -> Result<Vec<(&'static str, String)>> {
    let wrong = |why: String| Error::invalid("BAD_CONFIGURATION", why);
    let table: toml::Table = toml::from_str(text).map_err(|cause: toml::de::Error| {
        // The parser's own message would quote the line, which may hold a password.
        let line = cause.span().map_or(1, |span| {
            text.get(..span.start).map_or(1, |before| before.matches('\n').count() + 1)
        });
        wrong(format!("{origin}, line {line}: {}", cause.message()))
    })?;
    let mut values = Vec::with_capacity(table.len());
    for (name, value) in table {
        let Some(known) = SETTINGS.iter().find(|known| **known == name) else {
            return Err(wrong(format!(
                "`{name}` in {origin}: there is no such setting; `keyward config` lists them all"
            )));
        };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Array(_)
            | toml::Value::Table(_) => {
                return Err(wrong(format!(
                    "`{name}` in {origin}: text or a whole number is needed"
                )));
            }
        };
        values.push((*known, text));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn load(
        file: Option<&Path>,
        flags: Flags,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config> {
        Raw::gather(file, flags, variable)?.check()
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("some.toml");
        fs::write(&path, text).expect("written");
        (folder, path)
    }

    fn refusal(text: &str) -> String {
        let (_folder, path) = file(text);
        load(Some(&path), Vec::new(), &nothing).expect_err(text).public
    }

    #[test]
    fn the_defaults_file_says_what_the_code_does() {
        let (_folder, empty) = file("");
        let config = load(Some(&empty), Vec::new(), &nothing).expect("valid");
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.folder, Path::new("keyward-data"));
        assert_eq!(config.secrets_file, Path::new("keyward-data/secrets.toml"));
        assert!(matches!(&config.location, Location::File(path)
            if path == Path::new("keyward-data/keyward.db")));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8787");
        assert_eq!(config.base_url(), "http://127.0.0.1:8787");
        assert_eq!((config.public_url, config.metrics_listen), (None, None));
        assert!(config.tls.is_none() && config.counting);
        assert_eq!(config.lease, Duration::from_secs(15));
        assert_eq!((config.log_filter, config.log_format), (None, LogFormat::Text));
        assert_eq!(config.shutdown_grace, Duration::from_secs(10));
    }

    #[test]
    fn the_defaults_file_explains_every_setting_once_and_no_other() {
        let line = |text: &str| {
            let name = text.strip_prefix("# ").unwrap_or(text).split_once(" = ")?.0;
            let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            is_name.then(|| name.to_owned())
        };
        let mut explained: Vec<String> = DEFAULTS.lines().filter_map(line).collect();
        explained.sort();
        let mut settings: Vec<String> = SETTINGS.iter().map(|name| (*name).to_owned()).collect();
        settings.sort();
        assert_eq!(explained, settings);
    }

    #[test]
    fn every_example_in_the_defaults_file_is_valid() {
        let text: String = DEFAULTS
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest)
                    if rest.split_once(" = ").is_some_and(|(name, _)| SETTINGS.contains(&name)) =>
                {
                    format!("{rest}\n")
                }
                Some(_) | None => format!("{line}\n"),
            })
            .filter(|line| !line.starts_with("database_file"))
            .collect();
        let (_folder, path) = file(&text);
        let config = load(Some(&path), Vec::new(), &nothing).expect("valid");
        assert_eq!(config.public_url.as_deref(), Some("https://keys.example.com"));
        assert_eq!(config.location.engine(), "postgresql");
        assert_eq!(config.tls.expect("TLS").key, Path::new("/etc/keyward/tls.key"));
    }

    #[test]
    fn an_unknown_setting_is_refused_with_its_name_and_file() {
        let (_folder, path) = file("lsiten = \"127.0.0.1:1\"\n");
        let public = load(Some(&path), Vec::new(), &nothing).expect_err("refused").public;
        assert!(public.contains("`lsiten`"), "{public}");
        assert!(public.contains(&path.display().to_string()), "{public}");
    }

    #[test]
    fn a_flag_comes_before_the_environment_and_that_before_the_file() {
        let (_folder, path) = file("listen = \"127.0.0.1:1\"\nlease = \"strict\"\n");
        let variable = |name: &str| match name {
            "KEYWARD_LISTEN" => Some("127.0.0.1:2".to_owned()),
            "KEYWARD_LEASE" => Some("availability".to_owned()),
            _ => None,
        };
        let flags = vec![("listen", "127.0.0.1:3".to_owned())];
        let config = load(Some(&path), flags, &variable).expect("valid");
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.lease, Duration::from_secs(60));
        let config = load(Some(&path), Vec::new(), &nothing).expect("valid");
        assert_eq!((config.listen.port(), config.lease.as_secs()), (1, 5));
    }

    #[test]
    fn the_data_folder_can_hold_its_own_settings_but_not_its_own_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().to_str().expect("text").to_owned();
        let own = folder.path().join(FILE_NAME);
        fs::write(&own, "listen = \"127.0.0.1:4\"\nsecrets_file = \"s.toml\"\n").expect("written");
        let flags = vec![("data", data)];
        let config = load(None, flags.clone(), &nothing).expect("valid");
        assert_eq!(config.listen.port(), 4);
        assert_eq!(config.secrets_file, folder.path().join("s.toml"));
        fs::write(&own, "data = \"/elsewhere\"\n").expect("written");
        let public = load(None, flags, &nothing).expect_err("refused").public;
        assert!(public.contains("`data`"), "{public}");
    }

    #[test]
    fn values_out_of_bounds_or_of_the_wrong_kind_are_refused_by_name() {
        for (text, name) in [
            ("listen = \"nowhere\"", "`listen`"),
            ("listen = 8787", "`listen`"),
            ("body_bytes_max = 10", "`body_bytes_max`"),
            ("body_bytes_max = -1", "`body_bytes_max`"),
            ("body_bytes_max = 1.5", "`body_bytes_max`"),
            ("import_body_bytes_max = 2048", "`import_body_bytes_max`"),
            ("token_cache_max = []", "`token_cache_max`"),
            ("lease = \"forever\"", "`lease`"),
            ("log_format = \"xml\"", "`log_format`"),
            ("log = \"a=b=c\"", "`log`"),
            ("public_url = \"keys.example.com\"", "`public_url`"),
            ("tls_cert = \"only.pem\"", "`tls_cert`"),
            ("tls_key = \"only.pem\"", "`tls_key`"),
            ("database = \"mysql://x\"", "`database`"),
            ("database_file = \"/no/such/file\"", "`database_file`"),
            ("listen", "line 1"),
        ] {
            let public = refusal(text);
            assert!(public.contains(name), "{text}: {public}");
            assert!(public.contains("some.toml"), "{text}: {public}");
        }
    }

    #[test]
    fn a_secret_in_the_place_of_another_setting_is_not_repeated() {
        for name in SETTINGS.iter().filter(|name| !matches!(**name, "data" | "secrets_file")) {
            for value in ["https://ann:canary@h", "canary=x=y"] {
                let (_folder, path) = file(&format!("{name} = \"{value}\"\n"));
                if let Err(error) = load(Some(&path), Vec::new(), &nothing) {
                    assert!(!error.public.contains("canary"), "{name}: {}", error.public);
                }
            }
        }
    }

    #[test]
    fn an_error_about_the_database_never_repeats_its_address() {
        for text in ["database = \"pg://u:hunter2@h/d\"", "database = \"postgres://u:hunter2@"] {
            assert!(!refusal(text).contains("hunter2"), "{text}");
        }
        let flags = vec![("database", "postgres://u:hunter2@h/d".to_owned())];
        let (_folder, path) = file("");
        let config = load(Some(&path), flags, &nothing).expect("valid");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn the_database_address_can_come_from_a_file() {
        let (folder, path) = file("database_file = \"address\"\n");
        fs::write(folder.path().join("address"), "postgres://u@h/d\n").expect("written");
        let config = load(Some(&path), Vec::new(), &nothing).expect("valid");
        assert_eq!(config.location.engine(), "postgresql");
        let both = refusal("database = \"postgres://h\"\ndatabase_file = \"x\"");
        assert!(both.contains("not both"), "{both}");
    }

    #[test]
    fn keyward_log_comes_before_rust_log() {
        let (_folder, path) = file("");
        let both = |name: &str| match name {
            "KEYWARD_LOG" => Some("debug".to_owned()),
            "RUST_LOG" => Some("trace".to_owned()),
            _ => None,
        };
        let config = load(Some(&path), Vec::new(), &both).expect("valid");
        assert_eq!(config.log_filter.as_deref(), Some("debug"));
        let rust = |name: &str| (name == "RUST_LOG").then(|| "trace".to_owned());
        let config = load(Some(&path), Vec::new(), &rust).expect("valid");
        assert_eq!(config.log_filter.as_deref(), Some("trace"));
    }
}
