//! A disk of a test's own: a file system in a mount namespace that nobody else sees.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{KEYWARD, alone};

/// A mount namespace, kept by a process that waits for the end of its input.
pub(super) struct Room {
    holder: Child,
    /// Where the disk is mounted.
    disk: PathBuf,
}

impl Room {
    /// A namespace in which `disk` is a file system of `kib` KiB in memory.
    pub(super) fn of_kib(disk: &Path, kib: u32) -> Self {
        Self::with(disk, &format!("mount -t tmpfs -o size={kib}k,mode=700 tmpfs \"$1\""))
    }

    /// A namespace in which `disk` can be read and not written.
    pub(super) fn read_only(disk: &Path) -> Self {
        Self::with(disk, "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"")
    }

    fn with(disk: &Path, mount: &str) -> Self {
        std::fs::create_dir_all(disk).expect("a folder");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !rustix::process::getuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        let script = format!("{mount} && echo mounted && exec cat");
        command.args(["sh", "-c", &script, "sh"]).arg(disk);
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare of util-linux is installed");
        let mut said = String::new();
        let out = holder.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut said).expect("a pipe");
        assert_eq!(
            said, "mounted\n",
            "this test needs a mount namespace of its own: run it as root, or where unprivileged \
             user namespaces are allowed (in a container, with CAP_SYS_ADMIN)"
        );
        Self { holder, disk: disk.to_path_buf() }
    }

    /// A command that runs `program` inside.
    fn inside(&self, program: &str) -> Command {
        let mut command = alone("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount"]);
        if !rustix::process::getuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg(program);
        command
    }

    /// The binary under test, inside.
    pub(super) fn keyward(&self) -> Command {
        self.inside(KEYWARD)
    }

    /// Where a file of the disk can be reached from outside.
    pub(super) fn outside(&self, path: &Path) -> PathBuf {
        let root = format!("/proc/{}/root", self.holder.id());
        Path::new(&root).join(path.strip_prefix("/").expect("an absolute path"))
    }

    /// Fills the disk to the last byte but `left_kib` KiB.
    pub(super) fn fill(&self, left_kib: u64) {
        let path = self.outside(&self.disk.join("ballast"));
        let mut ballast = File::options().create(true).append(true).open(path).expect("a file");
        let page = [b'x'; 4_096];
        let full = loop {
            match ballast.write_all(&page) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        let length = ballast.metadata().expect("a file").len();
        ballast.set_len(length.saturating_sub(left_kib * 1_024)).expect("shorter");
    }

    /// Gives back what [`Room::fill`] took.
    pub(super) fn clear(&self) {
        std::fs::remove_file(self.outside(&self.disk.join("ballast"))).expect("a file");
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // OK to ignore: it may have ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
