//! Debian's `docker-registry`, with or without a password.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

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
}
