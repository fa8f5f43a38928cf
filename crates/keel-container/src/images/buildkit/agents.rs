//! SSH agents that the steps of a build may speak to: that of the user, or one of our own that holds a key.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// How long an agent may take to be there, or to take a key.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// Where the user's agent is.
const VARIABLE: &str = "SSH_AUTH_SOCK";

/// Agents that live as long as the build.
#[derive(Default)]
pub(super) struct Running {
    pub(super) sockets: BTreeMap<String, PathBuf>,
    // In the order in which they have to go.
    children: Vec<Child>,
    directory: Option<Private>,
}

/// A directory that goes with the build.
struct Private(PathBuf);

impl Drop for Private {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The agents that `ssh` names: id to a key or a socket, or to nothing for the user's agent.
pub(super) async fn find(
    ssh: &BTreeMap<String, Option<PathBuf>>,
    unique: &str,
) -> Result<Running, String> {
    let mut running = Running::default();
    for (id, path) in ssh {
        let socket = match path {
            None => {
                let socket = std::env::var_os(VARIABLE).filter(|it| !it.is_empty());
                socket.map(PathBuf::from).ok_or_else(|| {
                    format!("ssh {id:?}: there is no agent ({VARIABLE} is not set); start one, or name a key: `{id}=PATH`")
                })?
            }
            Some(path) => {
                let metadata = std::fs::metadata(path)
                    .map_err(|error| format!("ssh {id:?}: {}: {error}", path.display()))?;
                match metadata.file_type().is_socket() {
                    true => path.clone(),
                    false => running.hold(id, path, unique).await?,
                }
            }
        };
        running.sockets.insert(id.clone(), socket);
    }
    Ok(running)
}

impl Running {
    /// Starts an agent that holds this key.
    async fn hold(&mut self, id: &str, key: &Path, unique: &str) -> Result<PathBuf, String> {
        let failed = |reason: String| format!("ssh {id:?}: {}: {reason}", key.display());
        let directory = match &self.directory {
            Some(directory) => directory.0.clone(),
            None => {
                let path = std::env::temp_dir().join(format!("keel-ssh-{unique}"));
                std::fs::create_dir(&path).map_err(|error| failed(error.to_string()))?;
                self.directory = Some(Private(path.clone()));
                let private = std::fs::Permissions::from_mode(0o700);
                std::fs::set_permissions(&path, private)
                    .map_err(|error| failed(error.to_string()))?;
                path
            }
        };
        let socket = directory.join(self.children.len().to_string());
        let mut agent = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(format!("ssh-agent can't be run: {error}")))?;
        let there = async {
            while !socket.exists() {
                if let Ok(Some(status)) = agent.try_wait() {
                    return Err(failed(format!("ssh-agent ended with {status}")));
                }
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        let late = |what: &str| failed(format!("{what} took longer than {} s", PATIENCE.as_secs()));
        tokio::time::timeout(PATIENCE, there).await.map_err(|_| late("ssh-agent"))??;
        self.children.push(agent);
        let added = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env(VARIABLE, &socket)
            // Nobody can be asked for a passphrase.
            .env("SSH_ASKPASS_REQUIRE", "never")
            .env_remove("DISPLAY")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let added = tokio::time::timeout(PATIENCE, added).await.map_err(|_| late("ssh-add"))?;
        let added = added.map_err(|error| failed(format!("ssh-add can't be run: {error}")))?;
        if !added.status.success() {
            let said = String::from_utf8_lossy(&added.stderr);
            let said = said.trim().lines().last().unwrap_or_default().to_owned();
            return Err(failed(format!(
                "the key can't be used ({said}); one with a passphrase goes into your agent: `ssh-add {}`",
                key.display()
            )));
        }
        Ok(socket)
    }
}
