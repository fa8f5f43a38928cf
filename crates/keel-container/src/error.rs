//! What can go wrong with an engine, in words that say what to do.

use std::path::PathBuf;

/// Why something could not be done with the engine.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No engine was found.
    #[error(
        "there is no container engine: no socket at {}; install Docker (Debian: apt install docker.io) or Podman \
         (apt install podman, then systemctl enable --now podman.socket), or name it by DOCKER_HOST; a service runs \
         without one as a host process, with a `command` and `x-keel: {{runtime: process}}`",
        list(looked_at)
    )]
    NoEngine {
        /// Where one would be.
        looked_at: Vec<PathBuf>,
    },
    /// What names the engine can't be used.
    #[error("the container engine {url:?} (from {named_by}): {reason}")]
    Place {
        /// As it was named.
        url: String,
        /// By what.
        named_by: String,
        /// Why not.
        reason: String,
    },
    /// The context that is chosen can't be read.
    #[error("the Docker context {name:?} can't be used: {reason}; see `docker context ls`")]
    Context {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The socket is there, but we may not use it.
    #[error(
        "this user may not use the container engine at {url}: permission denied; add the user to the group that owns \
         the socket (Docker: sudo usermod -aG docker $USER, then log in again), or run the server as root"
    )]
    Forbidden {
        /// Where it is.
        url: String,
    },
    /// The engine does not answer: it is not running, restarts, or hangs.
    #[error(
        "the container engine at {url} does not answer ({reason}); see `systemctl status docker`"
    )]
    Away {
        /// Where it is.
        url: String,
        /// What happened instead.
        reason: String,
    },
    /// What was asked for does not exist.
    #[error("{message}")]
    NotFound {
        /// What the engine says.
        message: String,
    },
    /// The engine can't do it now, because of something else that is there.
    #[error("{message}")]
    Conflict {
        /// What the engine says.
        message: String,
    },
    /// The engine refused.
    #[error("{message}")]
    Refused {
        /// The status of its answer, if there was one.
        status: Option<u16>,
        /// What it says.
        message: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
}

impl Error {
    /// What a failed request to the engine at `url` means.
    #[must_use]
    pub fn from_request(url: &str, error: &bollard::errors::Error) -> Self {
        use bollard::errors::Error as Api;
        let away = |reason: String| Self::Away { url: url.to_owned(), reason };
        match error {
            Api::DockerResponseServerError { status_code, message } => {
                let message = match message.trim() {
                    // Podman may say nothing at all.
                    "" => format!("the engine refuses without a word (status {status_code})"),
                    message => message.to_owned(),
                };
                match status_code {
                    404 => Self::NotFound { message },
                    409 => Self::Conflict { message },
                    status => Self::Refused { status: Some(*status), message },
                }
            }
            Api::DockerStreamError { error } | Api::DockerContainerWaitError { error, .. } => {
                Self::Refused { status: None, message: error.trim().to_owned() }
            }
            Api::JsonDataError { message, .. } => Self::Refused {
                status: None,
                message: format!("the engine's answer is not understood: {message}"),
            },
            Api::RequestTimeoutError => away("no answer in time".into()),
            Api::SocketNotFoundError(path) => away(format!("there is no socket {path}")),
            _ => match root_io_error(error) {
                Some(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    Self::Forbidden { url: url.to_owned() }
                }
                Some(error) => away(error.to_string()),
                None => away(error.to_string()),
            },
        }
    }

    /// Whether the engine could not be asked at all, so that nothing is known.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(
            self,
            Self::NoEngine { .. }
                | Self::Place { .. }
                | Self::Context { .. }
                | Self::Forbidden { .. }
                | Self::Away { .. }
        )
    }
}

/// The system's reason at the bottom of an error.
fn root_io_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a std::io::Error> {
    let mut found = error.downcast_ref::<std::io::Error>();
    let mut next = error.source();
    while let Some(error) = next {
        found = error.downcast_ref::<std::io::Error>().or(found);
        next = error.source();
    }
    found
}
