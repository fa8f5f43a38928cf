//! Certificates of one name that follow one another, each signed by itself, in the files that a route names.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::stack::HOST;
use crate::bench::Error;
use crate::bench::process::{output, tool};

/// So many there are.
const NUMBER: usize = 4;
/// A key is made, or a handshake done, within this.
const PATIENCE: Duration = Duration::from_secs(10);

/// The certificates.
pub struct Certificates {
    directory: PathBuf,
    /// Its text is in the files.
    current: usize,
}

/// One of them.
pub struct Certificate(String);

impl Certificates {
    /// Makes all of them, and puts the first into its place.
    pub fn new(directory: &Path) -> Result<Self, Error> {
        let certificates = Self { directory: directory.to_owned(), current: 0 };
        let mut roots = String::new();
        for number in 0..NUMBER {
            let mut command = Command::new(tool("openssl", "openssl")?);
            command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
            command.args(["-nodes", "-days", "2", "-subj", &format!("/CN={HOST} {number}")]);
            command.args(["-addext", &format!("subjectAltName=DNS:{HOST}")]);
            command.arg("-keyout").arg(certificates.file(&format!("key-{number}.pem")));
            command.arg("-out").arg(certificates.file(&format!("certificate-{number}.pem")));
            output(command, "openssl", PATIENCE)?;
            roots += &certificates.text(number)?;
        }
        std::fs::write(certificates.roots(), roots)?;
        certificates.place()?;
        Ok(certificates)
    }

    /// Those whom a client is to trust.
    pub fn roots(&self) -> PathBuf {
        self.file("roots.pem")
    }

    /// Puts the next one into its place; `None` if there is none.
    pub fn renew(&mut self) -> Result<Option<Certificate>, Error> {
        if self.current + 1 == NUMBER {
            return Ok(None);
        }
        self.current += 1;
        self.place()?;
        Ok(Some(Certificate(self.text(self.current)?)))
    }

    fn place(&self) -> Result<(), Error> {
        for what in ["key", "certificate"] {
            let new = self.file(&format!("{what}.new"));
            std::fs::copy(self.file(&format!("{what}-{}.pem", self.current)), &new)?;
            std::fs::rename(new, self.file(&format!("{what}.pem")))?;
        }
        Ok(())
    }

    fn text(&self, number: usize) -> Result<String, Error> {
        Ok(std::fs::read_to_string(self.file(&format!("certificate-{number}.pem")))?)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Certificate {
    /// Whether it is the one that clients see.
    pub fn is_shown(&self, port: u16) -> Result<bool, Error> {
        let mut command = Command::new(tool("openssl", "openssl")?);
        command.args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", HOST]);
        Ok(output(command, "openssl", PATIENCE)?.contains(self.0.trim()))
    }
}
