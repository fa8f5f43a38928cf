//! The vocabulary of Evenkeel: the nouns that every other crate speaks.
//!
//! This crate names things and says what makes them valid; it performs no I/O, reads no clock and knows no
//! foreign format. Durations that are stored or sent are whole milliseconds; time is [`Timestamp`],
//! handed in by the caller. Everything iterates in a deterministic order.

pub mod claims;
mod container;
mod content;
mod event;
mod health;
mod id;
mod image;
mod instance;
mod policy;
mod rollout;
mod routing;
mod rule;
mod signal;
mod stack;
mod state;
mod time;
mod traffic;

pub use container::{
    Attachment, ContainerNetwork, ContainerResources, ContainerSpec, Device, DeviceRequest,
    FromImage, HealthTimes, Network, Subnet, UdpPort, are_apart,
};
pub use content::Content;
pub use event::{Event, EventKind};
pub use health::{HealthCheck, Probe, Readiness, Test};
pub use id::{
    Generation, InstanceId, InvalidName, NodeName, RevisionId, ServiceName, StackName, ZoneName,
};
pub use image::{Build, BuildSecret, ImageSource, PullPolicy};
pub use instance::{
    Adoption, Assignment, Exit, Goal, Health, HeldPort, InstanceStatus, Phase, PortBinding,
    SharesWith, StartFailure,
};
pub use policy::{
    ActiveCheck, AdaptiveConcurrency, Balance, Outlier, ProxyVersion, Retry, StickyCookie,
    Timeouts, TrafficLimits, TrafficPolicy, UpstreamTls,
};
pub use rollout::{Mark, Rollout, RolloutState};
pub use routing::{
    Acme, AcmeChallenge, BasicAuth, ClientAuth, ClientKey, Compress, Cors, Encoding, Entrypoint,
    EntrypointName, Filters, HeaderEdits, PathRewrite, RateLimit, Redirect, Rewrite, Route,
    RouteKind, RouteTls, Rule, Split, TlsVersion,
};
pub use signal::signal_number;
pub use stack::{
    Condition, Dependency, FailureAction, FileMount, Hook, ImageCommand, Limits, LogPolicy, Mount,
    MountOptions, MountSource, NetworkMode, Order, Protocol, PublishedPort, RestartCondition,
    RestartPolicy, RolloutPolicy, RuntimeKind, Scale, Service, ServicePort, Spec, Stack,
    StopPolicy, Transport, Volume,
};
pub use state::{Intent, StackRecord};
pub use time::{Timestamp, millis, millis_opt};
pub use traffic::{Endpoint, EndpointState};
