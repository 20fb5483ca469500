//! `keyward key import`: many keys made elsewhere, from a file with one JSON object a line.
//!
//! The lines are imported in changes of at most 1,000 keys, in the order of the file, all or none
//! of each. While one change is written the lines of the next are read. What stops an import is
//! told with its line and with the line to go on from; nothing before that has to be done again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use keyward_core::KeyId;
use serde_json::{Map, Value, json};

use super::api::find_api;
use super::session::Session;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::http::fields::Fields;
use crate::http::keys::{new_key, read_hash};
use crate::ops::keys::{self as changes, IMPORT_MAX, ImportedKey};
use crate::progress::Progress;
use crate::store::{Committed, keys};

/// Longest line in bytes: the fields' own limits add up to less.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Flags of `keyward key import`.
#[derive(clap::Args)]
#[command(
    after_help = "A line is an object with the fields of a new key over HTTP (name, api_id or \
    audience, user_id, org_code, type, scope_ids, expires_on, not_before, description, metadata) \
    and hash, algorithm (sha256) and encoding (hex or base64)."
)]
pub(super) struct ImportFlags {
    /// The file, one JSON object a line; - is standard input
    file: PathBuf,
    /// Leave out keys whose hash is there already; a key that was used since its import has
    /// another one, so going on with --from-line is surer
    #[arg(long)]
    skip_existing: bool,
    /// Begin with this line, after an import that was stopped
    #[arg(long, value_name = "LINE", default_value_t = 1)]
    from_line: usize,
}

/// A key of the file and the line that it stands on.
struct Line {
    number: usize,
    key: ImportedKey,
}

/// Imports a file.
pub(super) async fn run(flags: ImportFlags, session: &Session) -> Result<()> {
    let progress = Progress::on_terminal();
    let (input, bytes) = open(&flags.file)?;
    progress.begin("importing keys (bytes)", bytes);
    let mut reader = Reader {
        lines: input,
        number: 0,
        bytes: 0,
        clock: session.store.clock.clone(),
        audiences: HashMap::new(),
    };
    let mut total = Total::default();
    let imported = import(&mut reader, &flags, session, &progress, &mut total).await;
    progress.end();
    if let Some(last) = total.last {
        session.widened(last).await?;
    }
    imported.map_err(|mut error| {
        if total.done_to > 0 {
            error.public = format!(
                "{}; everything up to line {} is stored ({} keys imported): go on with \
                 --from-line {}",
                error.public,
                total.done_to,
                total.imported,
                total.done_to + 1
            );
        }
        error
    })?;
    let object = json!({ "imported": total.imported, "skipped": total.skipped });
    let sentence = match total.skipped {
        0 => format!("{} keys are imported.", total.imported),
        skipped => format!("{} keys are imported, {skipped} were there already.", total.imported),
    };
    session.out.done(&object, &sentence)
}

/// How far an import has come.
#[derive(Default)]
struct Total {
    imported: usize,
    skipped: usize,
    /// The last change.
    last: Option<Committed<()>>,
    /// The last line up to which everything is stored.
    done_to: usize,
}

async fn import(
    reader: &mut Reader,
    flags: &ImportFlags,
    session: &Session,
    progress: &Progress,
    total: &mut Total,
) -> Result<()> {
    reader.skip_to(flags.from_line)?;
    let mut page = reader.page(session).await?;
    while !page.is_empty() {
        let last = reader.number;
        let bytes = std::mem::take(&mut reader.bytes);
        // The next page is read while this one is written; what is wrong with it is told after.
        let (written, next) =
            tokio::join!(write(page, flags.skip_existing, session), reader.page(session));
        let (imported, skipped, change) = written?;
        total.imported += imported;
        total.skipped += skipped;
        total.last = change.or(total.last.take());
        total.done_to = last;
        progress.advance(bytes);
        page = next?;
    }
    Ok(())
}

/// Writes one page as one change: how many keys were imported, how many were there already.
async fn write(
    mut page: Vec<Line>,
    skip_existing: bool,
    session: &Session,
) -> Result<(usize, usize, Option<Committed<()>>)> {
    let (store, env) = (&session.store, session.env());
    let before = page.len();
    if skip_existing {
        let digests: Vec<_> = page.iter().map(|line| line.key.digest).collect();
        let known = keys::digests_among(&mut store.read().await?, env, &digests).await?;
        page.retain(|line| !known.contains(&line.key.digest));
        if page.is_empty() {
            return Ok((0, before, None));
        }
    }
    let skipped = before - page.len();
    let (numbers, imported): (Vec<usize>, Vec<ImportedKey>) =
        page.into_iter().map(|line| (line.number, line.key)).unzip();
    let done: Committed<Vec<KeyId>> = changes::import(store, env, &session.context, imported)
        .await
        .map_err(|error| at_line(error, &numbers))?;
    Ok((done.value.len(), skipped, Some(done.map(|_| ()))))
}

/// Names the line of a key that `ops` calls by its place in the change.
fn at_line(mut error: Error, numbers: &[usize]) -> Error {
    let place = error.public.strip_prefix("keys[").and_then(|rest| rest.split_once("]: "));
    let named = place.and_then(|(position, message)| {
        let number = numbers.get(position.parse::<usize>().ok()?)?;
        Some(format!("line {number}: {message}"))
    });
    if let Some(public) = named {
        error.public = public;
    }
    error
}

fn open(path: &Path) -> Result<(Box<dyn BufRead + Send>, i64)> {
    if path == Path::new("-") {
        return Ok((Box::new(BufReader::new(std::io::stdin())), 0));
    }
    let file = File::open(path).map_err(|cause| unreadable(path, &cause))?;
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let input = BufReader::with_capacity(1 << 20, file);
    Ok((Box::new(input), i64::try_from(bytes).unwrap_or(i64::MAX)))
}

fn unreadable(path: &Path, cause: &std::io::Error) -> Error {
    let public = format!("{} cannot be read ({})", path.display(), cause.kind());
    Error::invalid("UNREADABLE_FILE", public)
}

/// Reads lines and what they say.
struct Reader {
    lines: Box<dyn BufRead + Send>,
    /// The last line that was read; the first is 1.
    number: usize,
    /// Bytes read since they were last asked for.
    bytes: usize,
    clock: Clock,
    /// API ids by audience, as they were found.
    audiences: HashMap<String, String>,
}

impl Reader {
    /// The next line without its end; `None` after the last.
    fn line(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::with_capacity(512);
        let number = self.number + 1;
        let read = (&mut self.lines)
            .take(LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut line)
            .map_err(|cause| wrong(number, &format!("cannot be read ({})", cause.kind())))?;
        if read == 0 {
            return Ok(None);
        }
        if read as u64 > LINE_BYTES_MAX {
            return Err(wrong(number, &format!("is longer than {LINE_BYTES_MAX} bytes")));
        }
        self.number = number;
        self.bytes += read;
        Ok(Some(line))
    }

    fn skip_to(&mut self, first: usize) -> Result<()> {
        while self.number + 1 < first {
            if self.line()?.is_none() {
                return Err(wrong(first, "is not there; the file is shorter"));
            }
        }
        Ok(())
    }

    /// The keys of the next lines, as many as go into one change; empty lines are left out.
    async fn page(&mut self, session: &Session) -> Result<Vec<Line>> {
        let mut page = Vec::with_capacity(IMPORT_MAX);
        while page.len() < IMPORT_MAX {
            let Some(line) = self.line()? else { break };
            if line.trim_ascii().is_empty() {
                continue;
            }
            let number = self.number;
            let key = self.key(&line, session).await.map_err(|mut error| {
                error.public = format!("line {number}: {}", error.public);
                error
            })?;
            page.push(Line { number, key });
        }
        Ok(page)
    }

    /// Reads one key by the rules of the same fields over HTTP.
    async fn key(&mut self, line: &[u8], session: &Session) -> Result<ImportedKey> {
        let mut object = Fields::of_body(line)?.into_map();
        if let Some(Value::String(audience)) = object.remove("audience") {
            let api = self.api_of(audience, session).await?;
            object.entry("api_id").or_insert(Value::String(api));
        }
        read_key(object, self.clock.now_us())
    }

    async fn api_of(&mut self, audience: String, session: &Session) -> Result<String> {
        if let Some(known) = self.audiences.get(&audience) {
            return Ok(known.clone());
        }
        let api = find_api(session, Some(&audience)).await.map_err(|mut error| {
            error.public = format!("`audience`: there is no API `{}`", audience.escape_debug());
            error
        })?;
        let id = api.api.to_string();
        self.audiences.insert(audience, id.clone());
        Ok(id)
    }
}

fn read_key(object: Map<String, Value>, now: i64) -> Result<ImportedKey> {
    let mut fields = Fields::of_object(object);
    let new = new_key(&mut fields, now)?;
    let hash = fields.need_str("hash", 128)?;
    let algorithm = fields.take_str("algorithm", 20)?;
    let encoding = fields.take_str("encoding", 20)?;
    fields.finish()?;
    Ok(ImportedKey { new, digest: read_hash(&hash, algorithm.as_deref(), encoding.as_deref())? })
}

fn wrong(line: usize, what: &str) -> Error {
    Error::invalid("BAD_LINE", format!("line {line} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).expect("an object")
    }

    #[test]
    fn a_line_is_a_key_with_a_hash() {
        let hash = "a".repeat(64);
        let api = "0".repeat(32);
        let good = format!(
            r#"{{"name":"n","user_id":"u","api_id":"{api}","hash":"{hash}","algorithm":"sha256"}}"#
        );
        let key = read_key(object(&good), 0).expect("good");
        assert_eq!((key.new.name.as_str(), key.digest.bytes()), ("n", &[0xaa; 32]));
        let unknown = good.replace("\"name\"", "\"more\":1,\"name\"");
        assert!(read_key(object(&unknown), 0).is_err());
        let weak = good.replace("sha256", "md5");
        assert!(read_key(object(&weak), 0).is_err());
    }

    #[test]
    fn a_key_that_cannot_be_imported_is_called_by_its_line() {
        let error = Error::conflict("SECRET_TAKEN", "keys[1]: a key with this hash exists already");
        let named = at_line(error, &[10, 12]);
        assert_eq!(named.public, "line 12: a key with this hash exists already");
        let other = at_line(Error::unavailable("the database does not answer"), &[10]);
        assert_eq!(other.public, "the database does not answer");
    }
}
