//! The readers of what strangers send, laid open for fuzzing. Not for use by anything else.
//!
//! These are the very functions that serve connections, with what they decide made plain; what has to hold of it is
//! said where the targets are.

use keel_model::Generation;
use keel_route::part::Part;
use keel_route::snapshot::{ClusterStats, ToProxy};

use crate::http1::body::{Body, Chunks};
use crate::http1::forward::{self, Origin};
use crate::http1::request::{self, Request};
use crate::http1::response;
use crate::http2;
use crate::registry::Registry;

/// Bounds that the targets check.
pub use crate::limits::{MAX_FIELDS, MAX_HEAD};

/// It is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// After so many bytes.
    After(u64),
    /// After the last chunk.
    Chunked,
    /// With the connection.
    WithConnection,
}

impl From<&Body> for Ends {
    fn from(body: &Body) -> Self {
        match body {
            Body::Length(length) => Self::After(*length),
            Body::Chunked(_) => Self::Chunked,
            Body::UntilClose => Self::WithConnection,
        }
    }
}

/// A request's head.
#[derive(Clone, Debug)]
pub struct RequestHead {
    request: Request,
    /// The head that the endpoint gets.
    pub passed_on: Vec<u8>,
}

impl RequestHead {
    /// The head at the start of `input`; `None` if it is not complete.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn read(input: &[u8]) -> Result<Option<Self>, Refused> {
        let origin = Origin {
            peer: "192.0.2.1",
            local: "192.0.2.2:80",
            trusted: false,
            secure: false,
            lines: b"",
            ids: None,
        };
        let mut passed_on = Vec::new();
        match forward::read_and_write(input, origin, &mut passed_on) {
            Ok(request) => Ok(request.map(|request| Self { request, passed_on })),
            Err(_) => Err(Refused),
        }
    }

    /// Its length in the input.
    #[must_use]
    pub fn length(&self) -> usize {
        self.request.head
    }

    /// Where the body ends.
    #[must_use]
    pub fn body(&self) -> Ends {
        Ends::from(&self.request.body)
    }

    /// Whether the client may send another request.
    #[must_use]
    pub fn keep_alive(&self) -> bool {
        self.request.keep_alive
    }

    /// Whether another protocol is asked for.
    #[must_use]
    pub fn upgrade(&self) -> bool {
        self.request.upgrade
    }

    /// A reader of its body.
    #[must_use]
    pub fn reader(&self) -> BodyReader {
        BodyReader(self.request.body.clone())
    }
}

/// An answer's head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// Its length in the input.
    pub length: usize,
    /// Its status.
    pub status: u16,
    /// Where the body ends.
    pub body: Ends,
    /// Whether the client can send another request afterwards.
    pub keep_alive: bool,
    /// Whether the endpoint takes another request afterwards.
    pub reusable: bool,
    /// The client gets the content without its chunks.
    pub unchunk: bool,
    /// The head that the client gets.
    pub passed_on: Vec<u8>,
}

impl ResponseHead {
    /// The head at the start of `input`, which answers `request`; `None` if it is not complete.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn read(
        input: &[u8],
        request: &RequestHead,
        keep_alive: bool,
    ) -> Result<Option<Self>, Refused> {
        let mut out = Vec::new();
        let Ok(parsed) = response::parse(input, &request.request, keep_alive, None, &mut out)
        else {
            return Err(Refused);
        };
        Ok(parsed.map(|response| Self {
            length: response.head,
            status: response.status,
            body: Ends::from(&response.body),
            keep_alive: response.keep_alive,
            reusable: response.reusable,
            unchunk: response.unchunk,
            passed_on: if response.rewritten { out } else { input[..response.head].to_vec() },
        }))
    }
}

/// A reader of a body.
#[derive(Clone, Debug)]
pub struct BodyReader(Body);

impl BodyReader {
    /// A reader of chunks.
    #[must_use]
    pub fn chunked() -> Self {
        Self(Body::Chunked(Chunks::NEW))
    }

    /// How many of `bytes` belong to the body; its content is added to `content`.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn take(&mut self, bytes: &[u8], content: &mut Vec<u8>) -> Result<usize, Refused> {
        let mut alone = self.clone();
        let taken = self.0.take_content(bytes, content).map_err(|_| Refused);
        assert_eq!(alone.0.take(bytes).map_err(|_| Refused), taken, "with and without content");
        assert_eq!(alone.0, self.0, "with and without content");
        taken
    }

    /// Whether all of it has been taken.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }
}

/// The frame that a request of HTTP/1.1 becomes as the first of HTTP/2, if it asks for that and can have it; and the
/// length of its head.
#[must_use]
pub fn upgraded(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut fields = request::fields();
    let (request, head) = request::read(input, &mut fields).ok()??;
    let upgrade = http2::wanted(&request, &head)?;
    Some((upgrade.into_frame(), request.head))
}

/// Where the preface and the settings end that a client begins HTTP/2 with; `None` if they are not complete.
///
/// # Errors
/// [`Refused`].
pub fn settings_end(input: &[u8]) -> Result<Option<usize>, Refused> {
    http2::settings_end(input).map_err(|_| Refused)
}

/// The state of a proxy, without its threads and sockets.
#[derive(Debug)]
pub struct State(Registry);

impl Default for State {
    fn default() -> Self {
        Self(Registry::new(std::sync::Arc::new(crate::shared::Shared::for_fuzzing())))
    }
}

impl State {
    /// Applies `message` as the control thread does, except that nothing is listened on.
    pub fn obey(&mut self, message: ToProxy) {
        match message {
            ToProxy::Stats | ToProxy::TakeOver | ToProxy::Retire | ToProxy::Lend { .. } => {}
            ToProxy::Snapshot(mut snapshot) => {
                // Port 0 is refused before a socket is opened.
                snapshot.listeners.iter_mut().for_each(|l| l.bind.set_port(0));
                let listeners = snapshot.listeners.len();
                let (changes, failed) = self.0.replace(snapshot);
                assert_eq!((changes.len(), failed.len()), (2, listeners));
            }
            ToProxy::Cluster { generation, .. }
            | ToProxy::Endpoints { generation, .. }
            | ToProxy::Callers { generation, .. }
                if generation <= self.0.generation() => {}
            ToProxy::Cluster { generation, id, cluster } => {
                assert_eq!(self.0.replace_clusters(generation, [(id, cluster)]).len(), 2);
            }
            ToProxy::Endpoints { generation, id, set, gone } => {
                let mut cluster = self.0.cluster(&id).unwrap_or_default();
                Part { set, gone }.apply(&mut cluster);
                assert_eq!(self.0.replace_clusters(generation, [(id, cluster)]).len(), 2);
            }
            ToProxy::Callers { generation, callers, caller_cgroups } => {
                let changes = self.0.replace_callers(generation, callers, caller_cgroups);
                assert_eq!(changes.len(), 2);
            }
        }
    }

    /// The generation in force.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.0.generation()
    }

    /// Clusters that are known, with their counters; and how many instances drain.
    #[must_use]
    pub fn known(&self) -> (Vec<(String, ClusterStats)>, usize) {
        (self.0.stats().clusters.into_iter().collect(), self.0.draining().len())
    }
}
