//! What others on the machine can learn of a server: nothing.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

on_each_engine! {
    fn a_server_leaves_no_core_and_no_file_that_others_can_read(engine) {
        let site = Site::new(engine);
        // A folder that was made for everybody does not make the files so.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&site.folder, open).expect("chmod");
        let process = site.serve();
        let token = site.token(&process);
        site.api();
        let key = site.key("ann");
        assert!(process.verify(&token, &key.secret).is_valid());
        site.json(&["backup", &site.parent.path().join("backup").to_string_lossy()]);
        let proc = PathBuf::from(format!("/proc/{}", process.child.id()));
        let limits = std::fs::read_to_string(proc.join("limits")).expect("readable");
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let words: Vec<&str> = core.expect("a limit").split_whitespace().collect();
        assert_eq!(words[4..6], ["0", "0"], "{limits}");
        // Of a process that may not be dumped, these belong to root whoever runs it, and nobody
        // else can attach to it or read its memory.
        for file in ["mem", "environ", "maps"] {
            let metadata = std::fs::metadata(proc.join(file)).expect("there");
            assert_eq!(metadata.uid(), 0, "{file}");
        }
        let mut seen = 0;
        for file in std::fs::read_dir(&site.folder).expect("a folder") {
            let file = file.expect("an entry");
            let metadata = file.metadata().expect("there");
            let mode = metadata.permissions().mode();
            assert_eq!(mode & 0o077, 0, "{:?} has mode {mode:o}", file.path());
            seen += 1;
            if file.file_name() == "keyward.sock" {
                assert!(metadata.file_type().is_socket());
                seen += 100;
            }
        }
        assert!(seen >= 104, "the folder does not hold what was looked for: {seen}");
        let backup = std::fs::metadata(site.parent.path().join("backup")).expect("a backup");
        assert_eq!(backup.permissions().mode() & 0o077, 0);
        process.terminate();
    }
}

#[test]
fn the_address_of_a_database_can_be_given_without_telling_ps() {
    let mut site = Site::new(Engine::Postgres);
    let url = site.database.take().expect("a database");
    let canary = "k4n4rienv0gel";
    // Local connections are trusted, so that a password is not looked at.
    let secret = url.replacen("keyward@", &format!("keyward:{canary}@"), 1);
    assert!(secret.contains(canary), "{url}");
    let file = site.parent.path().join("database-url");
    std::fs::write(&file, secret).expect("written");
    let mut command = site.serve_command(&[]);
    command.env("KEYWARD_DATABASE_FILE", &file).env("KEYWARD_LOG", "trace");
    let mut process = Process::spawn(command, site.address, &site.parent.path().join("log"));
    process.wait_until_ready();
    let token = site.token(&process);
    assert_eq!(process.verify(&token, "k_live_x").verdict(), "API_KEY_INVALID");
    let proc = PathBuf::from(format!("/proc/{}", process.child.id()));
    for file in ["cmdline", "environ"] {
        let bytes = match std::fs::read(proc.join(file)) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied && file == "environ" => {
                assert!(!rustix::process::getuid().is_root(), "root may read everything");
                continue;
            }
            read => read.expect("readable"),
        };
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(canary), "{file} shows the password");
        assert!(file != "cmdline" || text.contains("serve"), "{text}");
    }
    let log = process.log();
    assert!(log.len() > 1_000 && !log.contains(canary), "the log shows the password");
    process.terminate();
}

#[test]
fn a_key_on_the_command_line_is_refused_and_not_repeated() {
    for key in ["legacy-canary", "k_live_Kq0Yz1mHc8r3Tn5vXw7bJd2fLs4gPa6eRu9iBo0kMyCtEhNQZVWxA"] {
        let ran = Ran::of(keyward().args(["verify", key]).output().expect("the binary runs"));
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
        assert!(ran.err.contains("put the key on standard input"), "{}", ran.err);
        assert!(!ran.err.contains(key), "{}", ran.err);
    }
}
