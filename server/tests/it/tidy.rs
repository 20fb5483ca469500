//! Style that no other tool holds: see STYLE.md.

use std::path::{Path, PathBuf};

/// Longest line, in characters.
const LINE_MAX: usize = 100;
/// Longest function, in lines. It may be lowered, never raised.
const FUNCTION_LINES_MAX: usize = 90;
/// Longest file, in lines. It may be lowered, never raised.
const FILE_LINES_MAX: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Every Rust file below `folders` with its text.
fn sources(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a folder that can be read");
            waiting.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a file that can be read");
            found.push((path, text));
        }
    }
    assert!(found.len() > 10, "the sources are where they are looked for");
    found
}

fn all_sources() -> Vec<(PathBuf, String)> {
    sources(&["core", "server/src", "server/tests", "client", "history"])
}

#[track_caller]
fn none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn no_line_is_too_long() {
    let problems = all_sources().into_iter().flat_map(|(path, text)| {
        let long: Vec<String> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.chars().count() > LINE_MAX)
            .map(|(at, _)| format!("{}:{}", path.display(), at + 1))
            .collect();
        long
    });
    none(problems.collect());
}

#[test]
fn no_file_is_too_long_and_every_file_says_what_it_is_for() {
    let mut problems = Vec::new();
    for (path, text) in all_sources() {
        if text.lines().count() > FILE_LINES_MAX {
            problems.push(format!("{}: {} lines", path.display(), text.lines().count()));
        }
        if !text.starts_with("//!") {
            problems.push(format!("{}: does not begin with //!", path.display()));
        }
    }
    none(problems);
}

#[test]
fn no_function_is_too_long() {
    let mut problems = Vec::new();
    for (path, text) in sources(&["core/src", "server/src", "client/src", "history/src"]) {
        let mut began: Option<(usize, usize, &str)> = None;
        for (at, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let starts = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn "];
            let head = line.trim_start().replace("pub(crate) async", "async");
            let head = head.replace("pub(super) async", "async").replace("pub async", "async");
            if began.is_none() && starts.iter().any(|start| head.starts_with(start)) {
                began = Some((at, indent, line));
            }
            if let Some((from, depth, name)) = began
                && line.trim_end() == format!("{}}}", " ".repeat(depth))
            {
                if at - from > FUNCTION_LINES_MAX {
                    let lines = at - from;
                    problems.push(format!("{}: {lines} lines: {}", path.display(), name.trim()));
                }
                began = None;
            }
        }
    }
    none(problems);
}

#[test]
fn sql_is_written_in_the_store_only() {
    let store = root().join("server/src/store");
    let words = ["\"select ", "\"insert into ", "\"update ", "\"delete from "];
    let problems = sources(&["server/src"]).into_iter().filter(|(path, text)| {
        !path.starts_with(&store) && words.iter().any(|word| text.contains(word))
    });
    none(problems.map(|(path, _)| path.display().to_string()).collect());
}

#[test]
fn unsafe_code_is_written_in_the_one_module_that_maps_memory() {
    let map = root().join("server/src/counters/map.rs");
    let keyword = concat!("unsafe", " {");
    let problems = sources(&["core/src", "server/src", "client/src", "history/src"])
        .into_iter()
        .filter(|(path, text)| *path != map && text.contains(keyword));
    none(problems.map(|(path, _)| path.display().to_string()).collect());
}

#[test]
fn nothing_is_left_for_later() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("#[ign", "ore")];
    let problems = all_sources().into_iter().flat_map(|(path, text)| {
        let found: Vec<String> = words
            .iter()
            .filter(|word| text.contains(**word))
            .map(|word| format!("{}: {word}", path.display()))
            .collect();
        found
    });
    none(problems.collect());
}

#[test]
fn every_file_is_part_of_a_module() {
    let files = sources(&["server/src", "core/src", "client/src", "history/src"]);
    let problems = files.iter().filter(|(path, _)| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("");
        let declared = format!("mod {stem};");
        !matches!(stem, "lib" | "main" | "mod")
            && !files.iter().any(|(_, text)| text.contains(&declared))
    });
    none(problems.map(|(path, _)| path.display().to_string()).collect());
}
