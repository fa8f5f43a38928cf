//! Debian's `docker-registry`, with or without a password.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{Program, free_port, installed};

/// A running registry.
pub struct Registry {
    _program: Program,
    port: u16,
    _dir: TempDir,
}

impl Registry {
    /// Starts one that gives to everybody.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn start() -> Result<Self, String> {
        Self::start_with(None)
    }

    /// Starts one that gives to this user only.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn start_for(user: &str, password: &str) -> Result<Self, String> {
        Self::start_with(Some((user, password)))
    }

    fn start_with(user: Option<(&str, &str)>) -> Result<Self, String> {
        installed("docker-registry")?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = |name: &str| dir.path().join(name);
        let port = free_port();
        let data = path("data");
        let mut config = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            data.display()
        );
        if let Some((user, password)) = user {
            installed("htpasswd")?;
            let line = Command::new("htpasswd").args(["-Bbn", user, password]).output();
            let line = line.map_err(|error| error.to_string())?.stdout;
            fs::write(path("htpasswd"), line).map_err(|error| error.to_string())?;
            config += &format!(
                "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                path("htpasswd").display()
            );
        }
        let file = path("config.yml");
        fs::write(&file, config).map_err(|error| error.to_string())?;
        let command = ["docker-registry", "serve", file.to_str().unwrap_or_default()];
        let ready = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        let program = Program::start(&command, &path("log"), ready)?;
        Ok(Self { _program: program, port, _dir: dir })
    }

    /// As images are named after it: `localhost:5000`.
    pub fn name(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) {
        let begin = format!("http://{}/v2/{repository}/blobs/uploads/", self.name());
        let answer = curl(&["--include", "--request", "POST", &begin], b"");
        let location = answer.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        });
        let location = location.expect("the registry says where to");
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let join = if location.contains('?') { '&' } else { '?' };
        let to = format!("{location}{join}digest=sha256:{hex}");
        let media = "Content-Type: application/octet-stream";
        curl(&["--request", "PUT", "--header", media, "--data-binary", "@-", &to], bytes);
    }

    /// Puts a manifest into a repository, by a tag or its digest.
    pub fn put_manifest(&self, repository: &str, reference: &str, media: &str, bytes: &[u8]) {
        let to = format!("http://{}/v2/{repository}/manifests/{reference}", self.name());
        let media = format!("Content-Type: {media}");
        curl(&["--request", "PUT", "--header", &media, "--data-binary", "@-", &to], bytes);
    }
}

/// Speaks HTTP; what is answered.
fn curl(arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new("curl")
        .args(["--silent", "--show-error", "--fail-with-body"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {answer}");
    answer
}
